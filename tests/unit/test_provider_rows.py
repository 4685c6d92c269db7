"""The rows of provider runs: one named case for each, and that none frees a slot without a proof."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from operations_center.clock import Now
from operations_center.in_flight_reconcile.facts import Evidence, JobFacts, LeaseState, Place, Sighting, Verdict
from operations_center.in_flight_reconcile.orphans import PROVIDER_RUN, judge, judge_one
from operations_center.in_flight_reconcile.plan import Deed, plan_actions
from operations_center.model import HOLDS_SLOT, Outcome, Proof, Run, RunState, TaskState
from tests.unit.samples import NOW, RUN

ALIVE, GONE, UNKNOWN = Sighting.ALIVE, Sighting.GONE, Sighting.UNKNOWN

POLLED_RUN = replace(
    RUN,
    backend="video",
    deadline_at=NOW.wall + 3_600_000,
    deadline_mono=NOW.monotonic + 3_600_000,
    kind="http_job",
    submitting_at=NOW.wall - 59_000,
    submitting_mono=NOW.monotonic - 59_000,
    provider_job_id="job-1",
)
SUBMITTING_RUN = replace(POLLED_RUN, provider_job_id=None)
DOUBTED_RUN = replace(SUBMITTING_RUN, doubt="no answer")
RESERVED_RUN = replace(SUBMITTING_RUN, state=RunState.RESERVED, submitting_at=None, submitting_mono=None)
STOPPED = {"stop_outcome": Outcome.STOPPED, "stop_reason": "enough", "stop_then": TaskState.BLOCKED}
LATE = {"deadline_at": NOW.wall - 1, "deadline_mono": NOW.monotonic - 1}

POLLED = Evidence(
    run=POLLED_RUN,
    now=NOW,
    place=Place.HERE,
    watcher=ALIVE,
    task=TaskState.RUNNING,
    job=JobFacts(submit_timeout_ms=30_000),
)
LEFT = replace(POLLED, watcher=GONE)
ASKABLE = JobFacts(may_ask=True)
KEYED = JobFacts(may_submit_again=True, submit_timeout_ms=30_000)


def verdict(base: Evidence, run: Run | None = None, **changes: Any) -> tuple[int, Verdict, Proof | None]:
    rule = judge_one(replace(base, run=run or base.run, **changes)).rule
    return rule.row, rule.verdict, rule.proof


def deeds(base: Evidence, run: Run | None = None, **changes: Any) -> list[Deed]:
    evidence = replace(base, run=run or base.run, **changes)
    return [action.deed for action in plan_actions(judge([evidence]), ())]


def test_row_3_a_reservation_is_left_to_its_living_watcher_while_it_is_young() -> None:
    assert verdict(POLLED, replace(RESERVED_RUN, reserved_mono=NOW.monotonic - 9_999)) == (3, Verdict.KEEP, None)


def test_row_4_a_reservation_is_freed_when_its_watcher_is_dead() -> None:
    young = replace(RESERVED_RUN, reserved_mono=NOW.monotonic)
    assert verdict(LEFT, young) == (4, Verdict.ORPHAN, Proof.NEVER_SUBMITTED)


def test_row_4_a_reservation_is_freed_when_its_watcher_takes_too_long() -> None:
    assert verdict(POLLED, RESERVED_RUN) == (4, Verdict.ORPHAN, Proof.NEVER_SUBMITTED)


def test_row_4_a_reservation_that_a_person_stopped_is_not_run_again() -> None:
    stopped = replace(RESERVED_RUN, stop_outcome=Outcome.STOPPED, stop_reason="enough")
    (action,) = plan_actions(judge([replace(LEFT, run=stopped)]), ())
    assert action.ending is not None
    assert (action.ending.outcome, action.ending.proof) == (Outcome.STOPPED, Proof.NEVER_SUBMITTED)


def test_row_4_a_reservation_of_before_a_reboot_is_freed() -> None:
    assert verdict(LEFT, RESERVED_RUN, place=Place.OTHER_BOOT) == (4, Verdict.ORPHAN, Proof.NEVER_SUBMITTED)


def test_row_5_a_submission_is_left_to_its_living_submitter_within_its_timeout() -> None:
    young = replace(SUBMITTING_RUN, submitting_mono=NOW.monotonic - 30_000)
    assert verdict(POLLED, young) == (5, Verdict.KEEP, None)


def test_row_6_a_submission_without_an_answer_is_suspect_while_its_submitter_lives() -> None:
    assert verdict(POLLED, SUBMITTING_RUN) == (6, Verdict.SUSPECT, None)


def test_row_7_a_submission_in_doubt_is_given_up_at_its_deadline() -> None:
    assert verdict(POLLED, replace(DOUBTED_RUN, **LATE)) == (7, Verdict.UNKNOWABLE, Proof.DEADLINE_PASSED)
    assert verdict(LEFT, replace(SUBMITTING_RUN, **LATE)) == (7, Verdict.UNKNOWABLE, Proof.DEADLINE_PASSED)


def test_row_8_a_submission_is_sent_again_where_the_provider_takes_a_key() -> None:
    assert verdict(LEFT, SUBMITTING_RUN, job=KEYED) == (8, Verdict.RESUBMIT, None)


def test_row_8_a_submission_in_doubt_is_never_sent_again_by_a_guess() -> None:
    assert verdict(LEFT, SUBMITTING_RUN) == (8, Verdict.UNKNOWABLE, None)
    assert deeds(LEFT, SUBMITTING_RUN) == [Deed.DOUBT]


def test_a_doubt_that_the_board_knows_of_is_left_to_a_person() -> None:
    assert deeds(LEFT, DOUBTED_RUN, task=TaskState.BLOCKED) == []


def test_a_doubt_that_the_board_does_not_know_of_is_told_again() -> None:
    assert deeds(LEFT, DOUBTED_RUN, task=TaskState.RUNNING) == [Deed.DOUBT]


def test_row_9_a_job_is_left_to_its_living_poller() -> None:
    assert verdict(POLLED, job=ASKABLE) == (9, Verdict.KEEP, None)


def test_row_9_a_job_of_another_host_is_left_to_it_while_its_lease_is_valid() -> None:
    elsewhere: dict[str, Any] = {
        "place": Place.ELSEWHERE,
        "watcher": UNKNOWN,
        "lease": LeaseState.VALID,
        "job": ASKABLE,
    }
    assert verdict(POLLED, **elsewhere) == (9, Verdict.KEEP, None)


@pytest.mark.parametrize("changes", [LATE])
def test_row_10_a_living_poller_is_told_that_its_run_is_overdue(changes: dict[str, Any]) -> None:
    assert verdict(POLLED, replace(POLLED_RUN, **changes)) == (10, Verdict.STOP, None)
    assert deeds(POLLED, replace(POLLED_RUN, **changes)) == [Deed.TELL_POLLER]


def test_row_10_a_poller_that_has_been_told_goes_on() -> None:
    assert verdict(POLLED, replace(POLLED_RUN, **STOPPED)) == (9, Verdict.KEEP, None)


def test_row_10_a_job_that_nobody_polls_is_ended_by_who_may_ask() -> None:
    assert verdict(LEFT, replace(POLLED_RUN, **STOPPED), job=ASKABLE) == (10, Verdict.STOP, None)
    assert verdict(LEFT, task=TaskState.CANCELLED, job=ASKABLE) == (10, Verdict.CANCEL, None)
    assert deeds(LEFT, task=TaskState.CANCELLED, job=ASKABLE) == [Deed.ASK]


def test_row_11_a_job_that_nobody_polls_is_adopted_by_who_may_not_ask() -> None:
    assert verdict(LEFT) == (11, Verdict.ADOPT, None)
    assert deeds(LEFT) == [Deed.ADOPT]


def test_row_11_a_job_is_adopted_after_a_reboot() -> None:
    assert verdict(LEFT, place=Place.OTHER_BOOT) == (11, Verdict.ADOPT, None)


def test_row_12_a_job_that_nobody_polls_is_asked_for_by_who_may() -> None:
    assert verdict(LEFT, job=ASKABLE) == (12, Verdict.ASK_PROVIDER, None)
    assert deeds(LEFT, job=ASKABLE) == [Deed.ASK]


runs = st.builds(
    lambda state, begun, job_id, doubt, stop, late, young: replace(
        POLLED_RUN,
        state=state,
        submitting_at=NOW.wall - 59_000 if begun else None,
        submitting_mono=NOW.monotonic - (1_000 if young else 59_000) if begun else None,
        reserved_mono=NOW.monotonic - (1_000 if young else 60_000),
        provider_job_id="job-1" if begun and job_id else None,
        doubt="no answer" if begun and doubt and not job_id else None,
        **(STOPPED if stop else {}),
        **(LATE if late else {}),
    ),
    st.sampled_from(sorted(HOLDS_SLOT)),
    *[st.booleans()] * 6,
)
facts = st.builds(
    JobFacts, may_ask=st.booleans(), may_submit_again=st.booleans(), submit_timeout_ms=st.sampled_from([0, 30_000])
)
any_evidence = st.builds(
    replace,
    st.just(POLLED),
    run=runs,
    job=facts,
    place=st.sampled_from(Place),
    watcher=st.sampled_from(Sighting),
    lease=st.sampled_from(LeaseState),
    task=st.sampled_from([None, *TaskState]),
)


@settings(max_examples=500)
@given(any_evidence)
def test_nothing_is_submitted_again_without_a_key_and_no_job_with_an_id_is_freed_unasked(evidence: Evidence) -> None:
    rule, planned = judge_one(evidence).rule, plan_actions(judge([evidence]), ())
    run = evidence.run
    assert rule in PROVIDER_RUN
    if rule.verdict is Verdict.RESUBMIT:
        assert evidence.job is not None
        assert evidence.job.may_submit_again
        assert (run.provider_job_id, run.doubt) == (None, None)
    if any(action.deed is Deed.FREE for action in planned):
        assert rule.proof is not None
        assert run.provider_job_id is None
    if any(action.deed is Deed.ASK for action in planned):
        assert run.provider_job_id is not None
        assert evidence.job is not None
        assert evidence.job.may_ask


def test_a_deadline_is_not_over_before_this_boot_has_lasted_as_long_as_the_run_may() -> None:
    late = replace(POLLED_RUN, deadline_at=NOW.wall - 1, reserved_at=NOW.wall - 60_001)
    just_booted = Now(NOW.wall, monotonic=59_000)
    assert not replace(POLLED, run=late, place=Place.OTHER_BOOT, now=just_booted).overdue
    assert replace(POLLED, run=late, place=Place.OTHER_BOOT, now=NOW).overdue
    assert replace(POLLED, run=late, place=Place.ELSEWHERE, now=just_booted).overdue
