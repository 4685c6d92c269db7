"""Settle a run that only a person can judge, and keep who did it and why."""

import os
import pwd
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from operations_center.errors import NotFound, OperationsCenterError, Unavailable
from operations_center.in_flight_reconcile import Verdict, explain_run
from operations_center.keeper.launch import revoke
from operations_center.model import Outcome, Proof, Run, RunState
from operations_center.outcomes import Ending
from operations_center.wiring import Center


class Resolution(StrEnum):
    LOST = "lost"
    FAILED = "failed"
    SUCCEEDED = "succeeded"
    RESUBMIT = "resubmit"


OUTCOMES: Mapping[Resolution, Outcome] = {
    Resolution.LOST: Outcome.LOST,
    Resolution.FAILED: Outcome.FAILED,
    Resolution.SUCCEEDED: Outcome.SUCCEEDED,
    Resolution.RESUBMIT: Outcome.RETRY,
}

FOR_A_PERSON = frozenset({Verdict.SUSPECT, Verdict.UNKNOWABLE})
"""What reconciliation leaves to a person."""

UNPOLLED = frozenset({Verdict.ADOPT, Verdict.ASK_PROVIDER, Verdict.RESUBMIT, Verdict.STOP, Verdict.CANCEL})
"""Of a provider run whose poller is dead: a person may know better than its provider."""


def resolve_run(center: Center, run_id: str, resolution: Resolution, reason: str) -> Run:
    """The run as it is then. Raises NotFound; OperationsCenterError where something is still looking after it."""
    run = center.ledger.run(run_id)
    if run is None:
        raise NotFound(f"cannot resolve run {run_id}: there is no such run; see `operations-center runs`")
    if resolution is Resolution.RESUBMIT and not run.is_job:
        raise OperationsCenterError(f"cannot resolve run {run_id} as resubmit: it is no provider run; use --as lost")
    is_closed = run.state is RunState.CLOSED and run.outcome is Outcome.UNKNOWN
    if not is_closed:
        _refuse_what_is_looked_after(center, run)
        if not run.is_job:
            _close_gate(center, run)
    by = _user()
    ending = Ending(
        OUTCOMES[resolution],
        Proof.RESOLVED,
        f"resolved as {resolution} by {by}: {reason}",
        retry_after_ms=0 if resolution is Resolution.RESUBMIT else None,
    )
    note = {"resolved_as": resolution, "resolved_by": by, "why": reason}
    if is_closed:
        _resolve_closed(center, run, ending, note)
    elif center.settlement.end(run, ending, center.me, note) is None:
        raise Unavailable(f"cannot resolve run {run_id}: it has changed meanwhile; look at it and try again")
    center.wake_everybody()
    return center.ledger.run(run_id) or run


def _resolve_closed(center: Center, run: Run, ending: Ending, note: Mapping[str, Any]) -> None:
    resolved = center.settlement.resolve(run, ending, center.me, note)
    if resolved is None:
        raise OperationsCenterError(
            f"cannot resolve run {run.run_id}: its task {run.task_id} is not blocked by it any more; "
            f"see `operations-center task show {run.task_id}`"
        )
    center.settlement.finish_and_close([resolved])


def _refuse_what_is_looked_after(center: Center, run: Run) -> None:
    explained = explain_run(center.surroundings, run.run_id)
    if run.state in (RunState.SETTLING, RunState.CLOSED) or explained is None:
        raise OperationsCenterError(f"cannot resolve run {run.run_id}: it has ended as {run.outcome} already")
    judgement, _ = explained
    # Of a provider run nothing else is suspect.
    if run.is_job and judgement.verdict is Verdict.SUSPECT:
        raise OperationsCenterError(
            f"cannot resolve run {run.run_id}: process {run.watcher_pid} of host {run.host}, which submits it, is not "
            "proven dead and may still send it; end that process first"
        )
    job = judgement.evidence.job
    in_trouble = job is not None and job.memory is not None and job.memory.trouble is not None
    if not in_trouble and judgement.verdict not in FOR_A_PERSON | (UNPOLLED if run.is_job else frozenset()):
        advice = f"end it with `operations-center stop {run.run_id}`"
        raise OperationsCenterError(f"cannot resolve run {run.run_id}: {judgement.rule.reason}; {advice}")


def _close_gate(center: Center, run: Run) -> None:
    """A spawner that wakes up with its slot freed must start nothing; a keeper that was first is the person's word."""
    try:
        revoke(center.state.run(run.run_id))
    except OSError as error:
        raise Unavailable(
            f"cannot resolve run {run.run_id}: its gate in {center.state.run(run.run_id)} cannot be created, so it may "
            f"still start: {error.strerror or error}; make room or mend the directory, and try again"
        ) from error


def _user() -> str:
    """Whoever runs this, by the kernel's word."""
    uid = os.getuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (user {uid})"
    except KeyError:
        return f"user {uid}"
