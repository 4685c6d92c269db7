"""Verdicts in, actions out. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from operations_center.boards import Claim
from operations_center.in_flight_reconcile.facts import Evidence, Sighting, Verdict
from operations_center.in_flight_reconcile.orphans import Judgement
from operations_center.keeper.result import Result
from operations_center.model import Outcome, Proof, Run, TaskState
from operations_center.outcomes import RAN_TOO_LONG, WAS_SILENT, Ending, ending_of

ORPHANED_IN_FLIGHT_CLEAR = "ORPHANED_IN_FLIGHT_CLEAR"
STALE_RUNNING_REQUEUE = "STALE_RUNNING_REQUEUE"

FINISHED = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.BLOCKED})
"""What an executor ends as by itself and for good."""

ARTIFACTS_NOTED = 100
"""Of those that a result names, which is 1 MiB at most."""


class Deed(StrEnum):
    """What an action does."""

    FREE = "free"
    REVOKE_AND_FREE = "revoke_and_free"
    REPLAY = "replay"
    STOP = "stop"
    ADOPT = "adopt"
    REQUEUE = "requeue"
    DOUBT = "doubt"
    TELL_POLLER = "tell_poller"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class StopOrder:
    """Why a tree is ended, and what that makes of its run; outcome None leaves it to what the run recorded.

    ``kill_within_ms`` shortens the run's grace.
    """

    outcome: Outcome | None
    reason: str
    then: TaskState | None = None
    kill_within_ms: int | None = None


class Action(msgspec.Struct, frozen=True, gc=False):
    """``note`` is what the log keeps of an end beside the verdict: what a job has made."""

    deed: Deed
    task_id: str
    reason: str
    rule: str
    verdict: Verdict | None = None
    proof: Proof | None = None
    run: Run | None = None
    evidence: Evidence | None = None
    ending: Ending | None = None
    order: StopOrder | None = None
    claim: Claim | None = None
    note: Mapping[str, Any] = {}


def run_of(action: Action) -> Run:
    assert action.run is not None
    return action.run


def evidence_of(action: Action) -> Evidence:
    assert action.evidence is not None
    return action.evidence


def plan_actions(judgements: Iterable[Judgement], stale: Iterable[Claim]) -> list[Action]:
    """What the verdicts ask for; ``stale`` are tasks shown as running in our name without an open run."""
    of_runs = [_action(judgement) for judgement in judgements]
    return [action for action in of_runs if action is not None] + [_requeue(claim) for claim in stale]


def _action(judgement: Judgement) -> Action | None:
    if judgement.verdict in (Verdict.KEEP, Verdict.SUSPECT):
        return None
    if judgement.verdict is Verdict.REPLAY:
        return _plain(Deed.REPLAY, judgement)
    is_job = judgement.evidence.run.is_job
    return _action_on_job(judgement) if is_job else _action_on_program(judgement)


def _action_on_program(judgement: Judgement) -> Action:
    match judgement.verdict:
        case Verdict.ADOPT:
            return _plain(Deed.ADOPT, judgement)
        case Verdict.STOP | Verdict.CANCEL | Verdict.REAP:
            return replace(_plain(Deed.STOP, judgement), order=stop_order(judgement))
        case Verdict.SETTLE:
            return replace(_freeing(judgement, _recorded(judgement)), note=_made(judgement.evidence))
        case Verdict.UNKNOWABLE:
            return _freeing(judgement, _with_stop(judgement, Outcome.UNKNOWN))
        case Verdict.ORPHAN if judgement.rule.proof is Proof.NEVER_STARTED:
            return replace(_freeing(judgement, _never_started(judgement)), deed=Deed.REVOKE_AND_FREE)
        case Verdict.ORPHAN:
            return _freeing(judgement, _with_stop(judgement, Outcome.LOST))
    raise AssertionError(f"no rule for a command run says {judgement.verdict}")


def _action_on_job(judgement: Judgement) -> Action | None:
    seen = judgement.evidence
    match judgement.verdict:
        case Verdict.ORPHAN:
            return _freeing(judgement, _never_submitted(judgement))
        case Verdict.UNKNOWABLE if judgement.rule.proof is not None:
            return _freeing(judgement, Ending(Outcome.UNKNOWN, judgement.rule.proof, seen.run.doubt or LATE))
        case Verdict.UNKNOWABLE:
            told = seen.run.doubt is not None and seen.task is not TaskState.RUNNING
            return None if told else _plain(Deed.DOUBT, judgement)
        case Verdict.ADOPT | Verdict.RESUBMIT:
            return _plain(Deed.ADOPT, judgement)
        case Verdict.STOP | Verdict.CANCEL if seen.poller is Sighting.ALIVE:
            return replace(_plain(Deed.TELL_POLLER, judgement), order=_order_for_job(seen))
        case Verdict.STOP | Verdict.CANCEL:
            return replace(_plain(Deed.ASK, judgement), order=_order_for_job(seen))
        case Verdict.ASK_PROVIDER:
            return _plain(Deed.ASK, judgement)
    raise AssertionError(f"no rule for a provider run says {judgement.verdict}")


LATE = "nobody has said within its timeout whether there is a job"


def _order_for_job(seen: Evidence) -> StopOrder:
    """What is stored already stays, unless the board has decided meanwhile."""
    if seen.task in (TaskState.CANCELLED, TaskState.DONE):
        return StopOrder(Outcome.CANCELLED, f"its task is {seen.task}", seen.task)
    if seen.run.stop_outcome is not None:
        return StopOrder(seen.run.stop_outcome, seen.run.stop_reason or "", seen.run.stop_then)
    return StopOrder(Outcome.TIMED_OUT, RAN_TOO_LONG)


def _plain(deed: Deed, judgement: Judgement) -> Action:
    run = judgement.evidence.run
    return Action(
        deed=deed,
        task_id=run.task_id,
        reason=judgement.rule.reason,
        rule=ORPHANED_IN_FLIGHT_CLEAR if judgement.verdict is Verdict.ORPHAN else judgement.verdict.upper(),
        verdict=judgement.verdict,
        proof=judgement.rule.proof,
        run=run,
        evidence=judgement.evidence,
    )


def _freeing(judgement: Judgement, ending: Ending) -> Action:
    return replace(_plain(Deed.FREE, judgement), ending=ending, proof=ending.proof)


def _recorded(judgement: Judgement) -> Ending:
    seen = judgement.evidence
    ending = _recorded_ending(seen)
    if judgement.rule.proof is Proof.BOOT_CHANGED:
        return replace(ending, proof=Proof.BOOT_CHANGED)
    return ending


def _made(seen: Evidence) -> dict[str, Any]:
    """The paths that its result names, as they are: nothing is known of what lies there."""
    named = seen.result.artifacts if isinstance(seen.result, Result) else ()
    return {"artifacts": list(named[:ARTIFACTS_NOTED])} if named else {}


def _recorded_ending(seen: Evidence) -> Ending:
    """A finish that came before the first signal of a stop is the run's own: its task must not run again."""
    ending = _ending(seen, seen.run)
    if seen.run.stop_outcome is None or seen.run.signalled_at is not None:
        return ending
    own = own_ending(seen)
    return own if own.outcome in FINISHED else ending


def own_ending(seen: Evidence) -> Ending:
    """How a run ended if nobody had asked it to."""
    return _ending(seen, replace(seen.run, stop_outcome=None))


def _ending(seen: Evidence, run: Run) -> Ending:
    return ending_of(run, seen.exit_record, seen.result, seen.timed_out, restored=seen.restored)


def _with_stop(judgement: Judgement, outcome: Outcome) -> Ending:
    """An end without a record: a stop that was asked for before explains it, else it is what the rule says."""
    assert judgement.rule.proof is not None
    run, reason = judgement.evidence.run, judgement.rule.reason
    if run.stop_outcome is not None and outcome is Outcome.LOST:
        return Ending(run.stop_outcome, judgement.rule.proof, run.stop_reason)
    if judgement.evidence.timed_out is not None and outcome is Outcome.LOST:
        return Ending(Outcome.TIMED_OUT, judgement.rule.proof, reason)
    return Ending(outcome, judgement.rule.proof, reason)


def _never_started(judgement: Judgement) -> Ending:
    run = judgement.evidence.run
    if run.stop_outcome is not None:
        return Ending(run.stop_outcome, Proof.NEVER_STARTED, run.stop_reason)
    if run.signalled_at is not None:
        return Ending(Outcome.LOST, Proof.PROCESS_GONE, run.stop_reason)
    return Ending(Outcome.NEVER_STARTED, Proof.NEVER_STARTED, judgement.rule.reason)


def _never_submitted(judgement: Judgement) -> Ending:
    run = judgement.evidence.run
    if run.stop_outcome is not None:
        return Ending(run.stop_outcome, Proof.NEVER_SUBMITTED, run.stop_reason)
    return Ending(Outcome.NEVER_STARTED, Proof.NEVER_SUBMITTED, judgement.rule.reason)


def stop_order(judgement: Judgement) -> StopOrder:
    """What a stop, cancel or reap verdict makes of its run; one that is stored already goes on as it is."""
    seen, reason = judgement.evidence, judgement.rule.reason
    run = seen.run
    unsignalled = run.stop_outcome is not None and run.signalled_at is None
    if unsignalled and seen.exit_recorded and own_ending(seen).outcome in FINISHED:
        # It has finished before anybody signalled it: the stop that is stored came too late to explain the end.
        return StopOrder(None, reason)
    if run.stop_reason is not None and judgement.verdict is not Verdict.CANCEL:
        return StopOrder(run.stop_outcome, run.stop_reason, run.stop_then)
    match judgement.verdict:
        case Verdict.CANCEL:
            return StopOrder(Outcome.CANCELLED, f"its task is {seen.task}", TaskState.CANCELLED)
        case Verdict.STOP:
            return StopOrder(Outcome.TIMED_OUT, RAN_TOO_LONG if seen.past_deadline else WAS_SILENT)
        case _:
            return StopOrder(None, reason)


def _requeue(claim: Claim) -> Action:
    return Action(
        deed=Deed.REQUEUE,
        task_id=claim.task_id,
        reason=f"the board shows it as running, but run {claim.run_id} is not open",
        rule=STALE_RUNNING_REQUEUE,
        claim=claim,
    )


def stale_claims(running: Sequence[Claim], open_runs: Iterable[Run]) -> list[Claim]:
    """Tasks that the board showed as running before the ledger was read, and that no open run holds."""
    held = {run.task_id for run in open_runs}
    return [claim for claim in running if claim.task_id not in held]
