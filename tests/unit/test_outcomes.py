"""How a run ended and what follows for its task: the whole table, case by case."""

from typing import Any

import pytest
from msgspec.structs import replace

from operations_center.bounds import LARGEST_FOLLOW_UPS, LARGEST_TITLE, MOST_FOLLOW_UPS
from operations_center.config import Role
from operations_center.config.sections import OnFailure, OnSuccess, RetryBackoff
from operations_center.keeper.inspect import ExitRecord, UnreadableExit
from operations_center.keeper.result import Result, ResultFollowUp, UnreadableResult
from operations_center.model import (
    COUNTED_AS_ATTEMPT,
    Attempts,
    Finish,
    FollowUp,
    Outcome,
    Proof,
    Run,
    TaskState,
)
from operations_center.outcomes import Ending, ending_of, finish_of, shows_that_backend_works
from tests.unit import samples
from tests.unit.samples import RUN

NOW = samples.NOW.wall
STOPPED = replace(RUN, stop_outcome=Outcome.STOPPED, stop_reason="enough")
WANTED = ResultFollowUp("Test it", "test", "well")


def result(outcome: Any = None, summary: str = "", **changes: Any) -> Result:
    return Result(outcome, summary, changes.get("retry_after_ms"), changes.get("follow_ups", ()), ())


# How it ended


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        (0, Outcome.SUCCEEDED, None),
        (1, Outcome.FAILED, "exit code 1"),
        (3, Outcome.FAILED, "exit code 3"),
        (75, Outcome.RETRY, "asked to be run again later (exit 75)"),
        (126, Outcome.FAILED, "cannot run the program (exit 126); see its stderr"),
        (127, Outcome.FAILED, "cannot find the program (exit 127); see its stderr"),
        (128, Outcome.FAILED, "exit code 128"),
        (137, Outcome.KILLED, "killed by SIGKILL, which Operations Center did not send"),
        (139, Outcome.KILLED, "killed by SIGSEGV, which Operations Center did not send"),
        (143, Outcome.KILLED, "killed by SIGTERM, which Operations Center did not send"),
        (255, Outcome.FAILED, "exit code 255"),
    ],
)
def test_an_exit_code_alone_says_how_it_ended(code: int, outcome: Outcome, reason: str | None) -> None:
    assert ending_of(RUN, ExitRecord(code), None, None) == Ending(outcome, Proof.EXIT_RECORDED, reason, code)


def test_who_sent_a_signal_is_unknown_where_the_ledger_was_restored_since() -> None:
    reason = "killed by SIGTERM; by whom is unknown, because the ledger was restored from a backup since"
    assert ending_of(RUN, ExitRecord(143), None, None, restored=True).reason == reason
    assert ending_of(RUN, ExitRecord(1), None, None, restored=True).reason == "exit code 1"


def test_every_exit_code_has_an_outcome_and_every_one_but_success_a_reason() -> None:
    for code in range(256):
        ending = ending_of(RUN, ExitRecord(code), None, None)
        assert (ending.outcome is Outcome.SUCCEEDED) == (code == 0) == (ending.reason is None)


@pytest.mark.parametrize(
    ("code", "claimed", "outcome"),
    [
        (0, "succeeded", Outcome.SUCCEEDED),
        (0, "retry", Outcome.RETRY),
        (0, "blocked", Outcome.BLOCKED),
        (0, "failed", Outcome.FAILED),
        (75, "succeeded", Outcome.RETRY),
        (75, "retry", Outcome.RETRY),
        (75, "blocked", Outcome.BLOCKED),
        (75, "failed", Outcome.FAILED),
        (1, "succeeded", Outcome.FAILED),
        (1, "retry", Outcome.FAILED),
        (1, "blocked", Outcome.FAILED),
        (1, "failed", Outcome.FAILED),
        (137, "succeeded", Outcome.KILLED),
        (137, "retry", Outcome.KILLED),
        (137, "blocked", Outcome.BLOCKED),
        (137, "failed", Outcome.FAILED),
    ],
)
def test_where_exit_code_and_result_disagree_the_worse_counts(code: int, claimed: str, outcome: Outcome) -> None:
    ending = ending_of(RUN, ExitRecord(code), result(claimed, "so it says"), None)
    assert (ending.outcome, ending.exit_code, ending.proof) == (outcome, code, Proof.EXIT_RECORDED)


@pytest.mark.parametrize(
    ("code", "written", "reason"),
    [
        (1, result("succeeded", "all is well"), "exit code 1"),
        (1, result("blocked", "no key"), "exit code 1: no key"),
        (1, result("failed", "no bricks"), "no bricks"),
        (1, result("failed"), "exit code 1"),
        (1, result(None, "no bricks"), "no bricks"),
        (0, result("failed", "no bricks"), "no bricks"),
        (0, result("succeeded", "all is well"), "all is well"),
        (0, result("succeeded"), None),
        (75, result("retry", "the API is busy"), "the API is busy"),
    ],
)
def test_the_reason_is_that_of_whoever_decided(code: int, written: Result, reason: str | None) -> None:
    assert ending_of(RUN, ExitRecord(code), written, None).reason == reason


def test_a_result_without_an_outcome_leaves_it_to_the_exit_code_and_keeps_its_follow_ups() -> None:
    ending = ending_of(RUN, ExitRecord(0), result(follow_ups=(WANTED,)), None)
    assert ending.outcome is Outcome.SUCCEEDED
    assert ending.follow_ups == (FollowUp("Test it", "test", "well"),)


def test_a_result_that_is_overruled_leaves_no_follow_ups() -> None:
    assert ending_of(RUN, ExitRecord(1), result("succeeded", follow_ups=(WANTED,)), None).follow_ups == ()


def test_a_wait_counts_only_where_the_outcome_is_a_retry() -> None:
    asked = result("retry", retry_after_ms=600_000)
    assert ending_of(RUN, ExitRecord(0), asked, None).retry_after_ms == 600_000
    assert ending_of(RUN, ExitRecord(75), result(None, retry_after_ms=5), None).retry_after_ms == 5
    assert ending_of(RUN, ExitRecord(1), asked, None).retry_after_ms is None


def test_an_unreadable_result_is_a_failure_with_the_reason_whatever_the_exit_code() -> None:
    for code in (0, 1, 75, 137):
        ending = ending_of(RUN, ExitRecord(code), UnreadableResult("cannot read result.json: torn"), None)
        assert ending == Ending(Outcome.FAILED, Proof.EXIT_RECORDED, "cannot read result.json: torn", code)


def test_an_unreadable_exit_record_is_a_failure_with_the_reason_whatever_the_result() -> None:
    for written in (None, result("succeeded"), UnreadableResult("torn")):
        ending = ending_of(RUN, UnreadableExit("cannot understand the exit record"), written, None)
        assert ending == Ending(Outcome.FAILED, Proof.PROCESS_GONE, "cannot understand the exit record")


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "retry", "blocked"])
def test_without_an_exit_record_a_valid_result_tells_the_end(outcome: str) -> None:
    written = result(outcome, "it says", retry_after_ms=7, follow_ups=(WANTED,))
    assert ending_of(RUN, None, written, None) == Ending(
        Outcome(outcome), Proof.RESULT_WRITTEN, "it says", None, 7, (FollowUp("Test it", "test", "well"),)
    )


@pytest.mark.parametrize("written", [None, result(None, "no outcome"), UnreadableResult("torn")])
def test_without_an_exit_record_and_a_valid_result_the_run_is_lost(written: Any) -> None:
    ending = ending_of(RUN, None, written, None)
    assert (ending.outcome, ending.proof, ending.exit_code) == (Outcome.LOST, Proof.PROCESS_GONE, None)
    assert ending.reason == "its processes are gone and left no exit record"


def test_a_stop_that_was_stored_before_is_the_outcome_whatever_was_written() -> None:
    for record in (ExitRecord(0), ExitRecord(143), None, UnreadableExit("torn")):
        ending = ending_of(STOPPED, record, result("retry", retry_after_ms=7, follow_ups=(WANTED,)), "wall")
        assert (ending.outcome, ending.reason) == (Outcome.STOPPED, "enough")
        assert (ending.follow_ups, ending.retry_after_ms) == ((), None)


@pytest.mark.parametrize(
    ("limit", "reason"), [("wall", "ran longer than timeout"), ("idle", "no output for idle_timeout")]
)
def test_a_limit_that_the_timer_enforced_is_a_time_out(limit: str, reason: str) -> None:
    ending = ending_of(RUN, ExitRecord(143), None, limit)
    assert ending == Ending(Outcome.TIMED_OUT, Proof.EXIT_RECORDED, reason, 143)


# What it tells of its backend


@pytest.mark.parametrize(
    ("ending", "works"),
    [
        (Ending(Outcome.SUCCEEDED, Proof.EXIT_RECORDED), True),
        (Ending(Outcome.FAILED, Proof.EXIT_RECORDED, exit_code=1), False),
        (Ending(Outcome.FAILED, Proof.EXIT_RECORDED, exit_code=127), False),
        (Ending(Outcome.FAILED, Proof.NEVER_STARTED, "cannot launch: Argument list too long"), False),
        (Ending(Outcome.KILLED, Proof.EXIT_RECORDED, exit_code=128 + 11), False),
        (Ending(Outcome.KILLED, Proof.EXIT_RECORDED, exit_code=128 + 9), None),
        (Ending(Outcome.RETRY, Proof.EXIT_RECORDED, exit_code=75), None),
        (Ending(Outcome.BLOCKED, Proof.EXIT_RECORDED, exit_code=0), None),
        (Ending(Outcome.LOST, Proof.PROCESS_GONE), None),
        (Ending(Outcome.STOPPED, Proof.EXIT_RECORDED, exit_code=1), None),
    ],
)
def test_an_end_within_seconds_tells_whether_the_backend_works(ending: Ending, works: bool | None) -> None:
    run = replace(RUN, started_at=NOW - 1_000)
    assert shows_that_backend_works(run, ending, 60_000, NOW) is works
    assert shows_that_backend_works(run, ending, 1_000, NOW) is (works or None)


# What it may ask for


def asking_for(*follow_ups: ResultFollowUp) -> Ending:
    return ending_of(RUN, ExitRecord(0), result(summary="built", follow_ups=follow_ups), None)


def test_a_result_with_too_many_follow_ups_keeps_its_outcome_and_the_first_of_them() -> None:
    ending = asking_for(*(ResultFollowUp(str(number), "test") for number in range(1_000)))
    assert ending.outcome is Outcome.SUCCEEDED
    assert [follow_up.title for follow_up in ending.follow_ups] == [str(number) for number in range(MOST_FOLLOW_UPS)]
    assert ending.reason == "built; 900 of 1000 follow-ups dropped: a run may ask for at most 100"


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (ResultFollowUp("t" * (LARGEST_TITLE + 1)), "its title has 10001 characters; give at most 10000"),
        (ResultFollowUp("  "), "its title is empty; give one"),
        (ResultFollowUp("More", "k" * 20_000), "its kind has 20000 characters; give at most 10000"),
        (ResultFollowUp("More", "test", "b" * LARGEST_FOLLOW_UPS), "those of a run may have at most"),
    ],
)
def test_a_follow_up_out_of_bounds_is_dropped_with_the_reason_and_the_others_are_made(
    wanted: ResultFollowUp, why: str
) -> None:
    ending = asking_for(wanted, WANTED)
    assert ending.follow_ups == (FollowUp("Test it", "test", "well"),)
    assert ending.reason is not None
    assert ending.reason.startswith(f"built; 1 of 2 follow-ups dropped: {why}")


# What follows for its task


def role(**changes: Any) -> Role:
    backoff = RetryBackoff(initial_ms=1_000, factor=2, max_ms=10_000)
    settings: dict[str, Any] = {"name": "goal", "backend": "agent", "max_retries": 2, "retry_backoff": backoff}
    return Role(**settings | changes)


def finish(
    ending: Ending, before: Attempts | None = None, policy: Role | None = None, run: Run = RUN
) -> tuple[Finish, Attempts]:
    return finish_of(run, ending, before or Attempts(), policy=policy or role(), now=NOW)


def ended(outcome: Outcome, **changes: Any) -> Ending:
    return replace(Ending(outcome, Proof.EXIT_RECORDED, "because"), **changes)


AGAIN = NOW + 1_000


CONSEQUENCES = [
    (Outcome.SUCCEEDED, TaskState.DONE, Attempts(attempts=1)),
    (Outcome.FAILED, TaskState.BLOCKED, Attempts(attempts=1)),
    (Outcome.BLOCKED, TaskState.BLOCKED, Attempts(attempts=1)),
    (Outcome.RETRY, TaskState.READY, Attempts(retries=1, not_before=AGAIN, since=NOW)),
    (Outcome.LOST, TaskState.READY, Attempts(attempts=1, not_before=AGAIN, since=NOW)),
    (Outcome.TIMED_OUT, TaskState.READY, Attempts(attempts=1, not_before=AGAIN, since=NOW)),
    (Outcome.KILLED, TaskState.READY, Attempts(attempts=1, not_before=AGAIN, since=NOW)),
    (Outcome.NEVER_STARTED, TaskState.READY, Attempts()),
    (Outcome.CANCELLED, TaskState.CANCELLED, Attempts()),
    (Outcome.STOPPED, TaskState.BLOCKED, Attempts()),
    (Outcome.UNKNOWN, TaskState.BLOCKED, Attempts(attempts=1)),
]


@pytest.mark.parametrize(("outcome", "state", "after"), CONSEQUENCES)
def test_each_outcome_has_its_consequence(outcome: Outcome, state: TaskState, after: Attempts) -> None:
    told, remembered = finish(ended(outcome))
    assert (told.state, remembered) == (state, after)
    asks_for_a_person = f"because; see `operations-center resolve {RUN.run_id}`"
    reasons = {Outcome.NEVER_STARTED: None, Outcome.UNKNOWN: asks_for_a_person}
    assert told.reason == reasons.get(outcome, "because")


def test_every_outcome_stands_in_the_table_and_counts_as_an_attempt_where_the_model_says_so() -> None:
    assert [outcome for outcome, _, _ in CONSEQUENCES] == list(Outcome)
    assert {outcome for outcome, _, after in CONSEQUENCES if after.attempts} == COUNTED_AS_ATTEMPT


def test_success_leads_where_the_role_says_and_forgets_the_retries() -> None:
    policy = role(on_success=OnSuccess(state=TaskState.REVIEW, follow_up="test"))
    told, remembered = finish(
        ended(Outcome.SUCCEEDED, follow_ups=(FollowUp("More"), FollowUp("Else", "doc"))),
        Attempts(attempts=1, retries=2, not_before=NOW),
        policy,
    )
    assert told.state is TaskState.REVIEW
    assert told.follow_ups == (FollowUp("More"), FollowUp("Else", "doc"), FollowUp(None, "test"))
    assert told.max_follow_ups == policy.max_follow_ups
    assert remembered == Attempts(attempts=2)


def test_failure_leads_where_the_role_says() -> None:
    policy = role(on_failure=OnFailure(state=TaskState.BACKLOG, follow_up="improve"))
    told, _ = finish(ended(Outcome.FAILED), policy=policy)
    assert told == Finish(TaskState.BACKLOG, "because", (FollowUp(None, "improve"),), policy.max_follow_ups)


def test_a_failure_that_makes_its_task_ready_backs_off_and_is_bounded() -> None:
    policy = role(on_failure=OnFailure(state=TaskState.READY))
    told, remembered = finish(ended(Outcome.FAILED), Attempts(attempts=1), policy)
    assert (told.state, remembered) == (TaskState.READY, Attempts(attempts=2, not_before=NOW + 2_000, since=NOW))
    told, remembered = finish(ended(Outcome.FAILED), remembered, policy)
    assert told == Finish(TaskState.BLOCKED, "because; attempt 3 of 3")


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.TIMED_OUT, Outcome.KILLED])
def test_the_wait_doubles_up_to_its_maximum_until_the_attempts_are_used_up(outcome: Outcome) -> None:
    policy, remembered, waits = role(max_attempts=7), Attempts(), []
    for _ in range(6):
        told, remembered = finish(ended(outcome), remembered, policy)
        assert told.state is TaskState.READY
        waits.append((remembered.not_before or 0) - NOW)
    assert waits == [1_000, 2_000, 4_000, 8_000, 10_000, 10_000]
    told, remembered = finish(ended(outcome, reason=None), remembered, policy)
    assert told == Finish(TaskState.BLOCKED, f"{outcome}; attempt 7 of 7")
    assert remembered == Attempts(attempts=7)


def test_a_retry_waits_counts_no_attempt_and_is_bounded() -> None:
    remembered, waits = Attempts(attempts=1), []
    for _ in range(2):
        told, remembered = finish(ended(Outcome.RETRY), remembered)
        assert told.state is TaskState.READY
        waits.append((remembered.not_before or 0) - NOW)
    told, remembered = finish(ended(Outcome.RETRY), remembered)
    assert waits == [1_000, 2_000]
    assert told == Finish(TaskState.BLOCKED, "asked for a later retry more than 2 times; because")
    assert remembered == Attempts(attempts=1, retries=3)


def test_a_retry_without_a_reason_is_bounded_in_words_that_say_none() -> None:
    told, _ = finish(ended(Outcome.RETRY, reason=None), Attempts(retries=2))
    assert told == Finish(TaskState.BLOCKED, "asked for a later retry more than 2 times")


@pytest.mark.parametrize("wait", [0, 600_000])
def test_a_retry_may_name_its_own_wait(wait: int) -> None:
    _, remembered = finish(ended(Outcome.RETRY, retry_after_ms=wait))
    assert remembered.not_before == NOW + wait


def test_what_never_started_may_be_held_back_for_a_moment() -> None:
    _, remembered = finish(ended(Outcome.NEVER_STARTED, retry_after_ms=5_000), Attempts(attempts=1, retries=1))
    assert remembered == Attempts(attempts=1, retries=1, not_before=NOW + 5_000, since=NOW)


def test_a_stop_leads_where_whoever_stopped_it_decided() -> None:
    told, _ = finish(ended(Outcome.STOPPED), run=replace(STOPPED, stop_then=TaskState.READY))
    assert told == Finish(TaskState.READY, "because")


BY_OUR_STOP = replace(STOPPED, stop_then=TaskState.READY)
INTERRUPTIONS = [
    ("its tree was killed", RUN, ended(Outcome.LOST, proof=Proof.PROCESS_GONE), True),
    ("the machine was rebooted", RUN, ended(Outcome.LOST, proof=Proof.BOOT_CHANGED), True),
    ("its container has gone", RUN, ended(Outcome.LOST, proof=Proof.LEASE_EXPIRED), True),
    ("a shutdown ended it", RUN, ended(Outcome.KILLED, proof=Proof.BOOT_CHANGED, exit_code=143), True),
    ("down --now", BY_OUR_STOP, ended(Outcome.STOPPED), True),
    ("a person stopped it", STOPPED, ended(Outcome.STOPPED), False),
    ("it crashed before a reboot", RUN, ended(Outcome.KILLED, proof=Proof.BOOT_CHANGED, exit_code=139), False),
    ("a stranger killed its program only", RUN, ended(Outcome.KILLED, exit_code=137), False),
    ("it was too slow", RUN, ended(Outcome.TIMED_OUT, proof=Proof.PROCESS_GONE), False),
    ("it failed", RUN, ended(Outcome.FAILED), False),
]


@pytest.mark.parametrize(("_why", "run", "ending", "interrupted"), INTERRUPTIONS)
def test_an_end_that_the_machine_or_we_have_caused_counts_no_attempt(
    _why: str, run: Run, ending: Ending, interrupted: bool
) -> None:
    told, remembered = finish(ending, run=run)
    assert bool(remembered.interruptions) is interrupted
    if interrupted:
        assert (told.state, remembered.attempts) == (TaskState.READY, 0)


def test_interruptions_are_bounded_by_themselves_and_leave_the_attempts_alone() -> None:
    policy, remembered = role(max_attempts=1, max_interruptions=3), Attempts()
    for _ in range(2):
        told, remembered = finish(ended(Outcome.LOST, proof=Proof.BOOT_CHANGED), remembered, policy)
        assert told.state is TaskState.READY
        assert remembered.not_before is not None
    told, remembered = finish(ended(Outcome.STOPPED), remembered, policy, BY_OUR_STOP)
    assert told == Finish(TaskState.BLOCKED, "interrupted 3 times (max_interruptions), last: because")
    assert remembered == Attempts(interruptions=3)


def test_follow_ups_are_made_for_an_end_for_good_only() -> None:
    for outcome in Outcome:
        told, _ = finish(ended(outcome, follow_ups=(FollowUp("More"),)))
        for_good = outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.BLOCKED)
        assert told.follow_ups == ((FollowUp("More"),) if for_good else ()), outcome
