"""How a run ended, and what follows for its task. Pure: what was read comes in, values come out."""

import signal
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from operations_center.bounds import LARGEST_FOLLOW_UPS, MOST_FOLLOW_UPS, check_texts
from operations_center.config import OnSuccess, Role
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
    in_one_reason,
)
from operations_center.providers import JobState
from operations_center.providers.looking import Over

RAN_TOO_LONG = "ran longer than timeout"
WAS_SILENT = "no output for idle_timeout"

EXIT_TRY_LATER = 75
"""EX_TEMPFAIL of sysexits.h."""

_SEVERITY = (
    Outcome.SUCCEEDED,
    Outcome.RETRY,
    Outcome.KILLED,
    Outcome.BLOCKED,
    Outcome.FAILED,
)
"""Where exit code and result disagree, the later one counts."""


_PROOFS_OF_INTERRUPTION = frozenset({Proof.PROCESS_GONE, Proof.BOOT_CHANGED, Proof.LEASE_EXPIRED})
_EXITS_OF_A_SHUTDOWN = frozenset(
    128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
)


class Ending(msgspec.Struct, frozen=True, gc=False):
    """A run's end, with the proof that its slot may be freed."""

    outcome: Outcome
    proof: Proof
    reason: str | None = None
    exit_code: int | None = None
    retry_after_ms: int | None = None
    follow_ups: tuple[FollowUp, ...] = ()


def ending_of(
    run: Run,
    exit_record: ExitRecord | UnreadableExit | None,
    result: Result | UnreadableResult | None,
    timed_out: str | None,
    *,
    restored: bool = False,
) -> Ending:
    """The end of a run whose tree is gone; ``timed_out`` is the limit that the keeper's timer enforced.

    ``restored``: the ledger may not know what was done to the run, for it was restored from a backup since.
    """
    written = _written_ending(exit_record, result, restored)
    stop = _stop(run, timed_out)
    if stop is None:
        return written
    outcome, reason = stop
    return replace(written, outcome=outcome, reason=reason, follow_ups=(), retry_after_ms=None)


def _stop(run: Run, timed_out: str | None) -> tuple[Outcome, str | None] | None:
    if run.stop_outcome is not None:
        return run.stop_outcome, run.stop_reason
    if timed_out is not None:
        return Outcome.TIMED_OUT, WAS_SILENT if timed_out == "idle" else RAN_TOO_LONG
    return None


def _written_ending(
    exit_record: ExitRecord | UnreadableExit | None, result: Result | UnreadableResult | None, restored: bool
) -> Ending:
    if isinstance(exit_record, UnreadableExit):
        return Ending(Outcome.FAILED, Proof.PROCESS_GONE, exit_record.reason)
    if exit_record is None:
        return _ending_without_record(result)
    code = exit_record.code
    by_code = Ending(_outcome_of_code(code), Proof.EXIT_RECORDED, _reason_of_code(code, restored), code)
    if result is None:
        return by_code
    if isinstance(result, UnreadableResult):
        return replace(by_code, outcome=Outcome.FAILED, reason=result.reason)
    return _worse(by_code, result)


def _ending_without_record(result: Result | UnreadableResult | None) -> Ending:
    if isinstance(result, Result) and result.outcome is not None:
        follow_ups, dropped = _asked_for(result)
        return Ending(
            Outcome(result.outcome),
            Proof.RESULT_WRITTEN,
            in_one_reason(result.summary or None, dropped),
            retry_after_ms=result.retry_after_ms,
            follow_ups=follow_ups,
        )
    return Ending(Outcome.LOST, Proof.PROCESS_GONE, "its processes are gone and left no exit record")


def _worse(by_code: Ending, result: Result) -> Ending:
    claimed = Outcome(result.outcome) if result.outcome else by_code.outcome
    outcome = max(by_code.outcome, claimed, key=_SEVERITY.index)
    follow_ups, dropped = _asked_for(result) if outcome is claimed else ((), None)
    return replace(
        by_code,
        outcome=outcome,
        reason=in_one_reason(_reason_of_both(by_code, claimed, outcome, result.summary), dropped),
        retry_after_ms=result.retry_after_ms if outcome is Outcome.RETRY else None,
        follow_ups=follow_ups,
    )


def _reason_of_both(by_code: Ending, claimed: Outcome, outcome: Outcome, summary: str) -> str | None:
    """The exit code explains the end only where it is the reason for it; a success that was none explains nothing."""
    if outcome is claimed or by_code.reason is None:
        return summary or by_code.reason
    return by_code.reason if claimed is Outcome.SUCCEEDED or not summary else f"{by_code.reason}: {summary}"


def _asked_for(result: Result) -> tuple[tuple[FollowUp, ...], str | None]:
    """The follow-ups of a result that are within the bounds, and why the others are dropped."""
    taken: list[FollowUp] = []
    why, room = None, LARGEST_FOLLOW_UPS
    for wanted in result.follow_ups:
        size = len(wanted.title) + len(wanted.body)
        problem = _problem_of(wanted, is_one_too_many=len(taken) == MOST_FOLLOW_UPS, is_too_large=size > room)
        if problem is None:
            taken.append(FollowUp(wanted.title, wanted.kind or None, wanted.body))
            room -= size
        why = why or problem
    dropped = len(result.follow_ups) - len(taken)
    return tuple(taken), f"{dropped} of {len(result.follow_ups)} follow-ups dropped: {why}" if why else None


def _problem_of(wanted: ResultFollowUp, *, is_one_too_many: bool, is_too_large: bool) -> str | None:
    if is_one_too_many:
        return f"a run may ask for at most {MOST_FOLLOW_UPS}"
    if is_too_large:
        return f"those of a run may have at most {LARGEST_FOLLOW_UPS} characters together"
    try:
        check_texts({"title": wanted.title, "body": wanted.body} | ({"kind": wanted.kind} if wanted.kind else {}))
    except ValueError as error:
        return str(error)
    return None


def shows_that_backend_works(run: Run, ending: Ending, within_ms: int, now: int) -> bool | None:
    """Say what a command's end tells of its backend: it works, or it fails at once; None: neither.

    A program that crashes does it to itself; other signals say nothing of it. ``now`` is wall-clock ms.
    """
    if ending.outcome is Outcome.SUCCEEDED:
        return True
    crashed = ending.outcome is Outcome.KILLED and ending.exit_code in _CRASHES
    began_at = run.started_at if run.started_at is not None else run.reserved_at
    if (ending.outcome is Outcome.FAILED or crashed) and 0 <= now - began_at < within_ms:
        return False
    return None


_CRASHES = frozenset(
    128 + getattr(signal, name) for name in ("SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS")
)
"""Exit codes of programs that were ended by a signal of their own making."""


def _outcome_of_code(code: int) -> Outcome:
    if code == 0:
        return Outcome.SUCCEEDED
    if code == EXIT_TRY_LATER:
        return Outcome.RETRY
    return Outcome.KILLED if _signal_of_code(code) else Outcome.FAILED


def _reason_of_code(code: int, restored: bool) -> str | None:
    name = _signal_of_code(code)
    if name and restored:
        return f"killed by {name}; by whom is unknown, because the ledger was restored from a backup since"
    if name:
        return f"killed by {name}, which Operations Center did not send"
    reasons = {
        0: None,
        EXIT_TRY_LATER: "asked to be run again later (exit 75)",
        126: "cannot run the program (exit 126); see its stderr",
        127: "cannot find the program (exit 127); see its stderr",
    }
    return reasons.get(code, f"exit code {code}")


def _signal_of_code(code: int) -> str | None:
    """The name of signal n, if a shell means by the code that it was killed by one: 128 + n (POSIX sh, 2.8.2)."""
    number = code - 128
    if not 0 < number < signal.NSIG:
        return None
    known = {each.value: each.name for each in signal.Signals}
    return known.get(number, f"signal {number}")


def ending_of_job(run: Run, over: Over) -> Ending:
    """The end of a run whose job has ended at its provider. A job that finished before a stop came is finished."""
    heard = over.heard
    if heard.state is JobState.SUCCEEDED:
        missing = over.refused or (heard.reason if not over.artifacts else None)
        if missing is None:
            return Ending(Outcome.SUCCEEDED, Proof.PROVIDER_ANSWERED)
        reason = f"its job has succeeded, but what it has made cannot be had: {missing}"
        return Ending(Outcome.FAILED, Proof.PROVIDER_ANSWERED, reason)
    if run.stop_outcome is not None:
        return Ending(run.stop_outcome, Proof.PROVIDER_ANSWERED, run.stop_reason)
    how = "was cancelled at its provider" if heard.state is JobState.CANCELLED else f"has {heard.state}"
    reason = f"its job {how}" + (f": {heard.reason}" if heard.reason else "")
    return Ending(Outcome.FAILED, Proof.PROVIDER_ANSWERED, reason)


def finish_of(run: Run, ending: Ending, before: Attempts, *, policy: Role, now: int) -> tuple[Finish, Attempts]:
    """Say what the board is told, and what the ledger remembers of the task. ``now`` is wall-clock ms."""
    finish, after = _finish_of(run, ending, before, policy=policy, now=now)
    return replace(finish, max_follow_ups=policy.max_follow_ups) if finish.follow_ups else finish, after


def is_interruption(run: Run, ending: Ending) -> bool:
    """Tell an end by the machine, by us or by a stranger from one that speaks against the task.

    A run without an exit record lost its keeper as well as its executor: somebody killed the whole tree, or the machine
    or the container ended. An exit that was recorded is the executor's own, also a signal that we did not send. A
    machine that shuts down is the exception: it ends the executor first, and the keeper records that.
    """
    match ending.outcome:
        case Outcome.LOST:
            return ending.proof in _PROOFS_OF_INTERRUPTION
        case Outcome.KILLED:
            return ending.proof is Proof.BOOT_CHANGED and ending.exit_code in _EXITS_OF_A_SHUTDOWN
        case Outcome.STOPPED:
            return run.stop_then is TaskState.READY
        case _:
            return False


def _finish_of(run: Run, ending: Ending, before: Attempts, *, policy: Role, now: int) -> tuple[Finish, Attempts]:
    if is_interruption(run, ending):
        return _interrupted(before, policy, ending, now)
    counted = ending.outcome in COUNTED_AS_ATTEMPT
    after = replace(before, attempts=before.attempts + counted, not_before=None, since=None)
    match ending.outcome:
        case Outcome.SUCCEEDED:
            follow_ups = _follow_ups(ending.follow_ups, policy.on_success)
            finish = Finish(policy.on_success.state, ending.reason, follow_ups)
            return finish, replace(after, retries=0, interruptions=0)
        case Outcome.FAILED | Outcome.BLOCKED:
            follow_ups = _follow_ups(ending.follow_ups, policy.on_failure)
            if policy.on_failure.state is TaskState.READY:
                finish, backing_off = _again(after, policy, ending, now)
                return replace(finish, follow_ups=follow_ups if finish.state is TaskState.BLOCKED else ()), backing_off
            return Finish(policy.on_failure.state, ending.reason, follow_ups), after
        case Outcome.RETRY:
            return _later(replace(after, retries=after.retries + 1), policy, ending, now)
        case Outcome.LOST | Outcome.TIMED_OUT | Outcome.KILLED:
            return _again(after, policy, ending, now)
        case Outcome.NEVER_STARTED:
            wait = ending.retry_after_ms
            return Finish(TaskState.READY), _backing_off(after, now, wait)
        case Outcome.CANCELLED:
            return Finish(TaskState.CANCELLED, ending.reason), after
        case Outcome.STOPPED:
            return Finish(run.stop_then or TaskState.BLOCKED, ending.reason), after
        case Outcome.UNKNOWN:
            reason = f"{ending.reason or ending.outcome}; see `operations-center resolve {run.run_id}`"
            return Finish(TaskState.BLOCKED, reason), after


def _again(after: Attempts, policy: Role, ending: Ending, now: int) -> tuple[Finish, Attempts]:
    if after.attempts >= policy.max_attempts:
        reason = f"{ending.reason or ending.outcome}; attempt {after.attempts} of {policy.max_attempts}"
        return Finish(TaskState.BLOCKED, reason), after
    return Finish(TaskState.READY, ending.reason), _backing_off(after, now, policy.backoff_ms(after.attempts))


def _interrupted(before: Attempts, policy: Role, ending: Ending, now: int) -> tuple[Finish, Attempts]:
    """A stop by us needs no backoff: nothing starts before we do."""
    after = replace(before, interruptions=before.interruptions + 1, not_before=None, since=None)
    if after.interruptions >= policy.max_interruptions:
        reason = f"interrupted {after.interruptions} times (max_interruptions), last: {ending.reason or ending.outcome}"
        return Finish(TaskState.BLOCKED, reason), after
    wait = None if ending.outcome is Outcome.STOPPED else policy.backoff_ms(after.interruptions)
    return Finish(TaskState.READY, ending.reason), _backing_off(after, now, wait)


def _backing_off(after: Attempts, now: int, wait_ms: int | None) -> Attempts:
    return after if wait_ms is None else replace(after, not_before=now + wait_ms, since=now)


def _later(after: Attempts, policy: Role, ending: Ending, now: int) -> tuple[Finish, Attempts]:
    if after.retries > policy.max_retries:
        bound = f"asked for a later retry more than {policy.max_retries} times"
        return Finish(TaskState.BLOCKED, f"{bound}; {ending.reason}" if ending.reason else bound), after
    wait = ending.retry_after_ms if ending.retry_after_ms is not None else policy.backoff_ms(after.retries)
    return Finish(TaskState.READY, ending.reason), _backing_off(after, now, wait)


def _follow_ups(wanted: Sequence[FollowUp], after: OnSuccess) -> tuple[FollowUp, ...]:
    """Those that the run asked for, and the one that its role asks for, with the text that the board has itself."""
    return (*wanted, FollowUp(None, after.follow_up)) if after.follow_up is not None else tuple(wanted)
