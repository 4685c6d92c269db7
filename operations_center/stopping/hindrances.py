"""What cannot be ended from here, whatever is tried: it is told at once, and not waited for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from operations_center.clock import rfc3339
from operations_center.in_flight_reconcile import Judgement, Scope, Sighting, Verdict
from operations_center.in_flight_reconcile.evidence import gather_evidence
from operations_center.in_flight_reconcile.orphans import judge
from operations_center.model import HOLDS_SLOT, Run
from operations_center.stopping.ends import listed
from operations_center.wiring import Center


class Hindrance(StrEnum):
    """UNANSWERED: a submission whose poller is dead, and which only a watcher may send again. UNCANCELLABLE: a job
    whose backend names no way to cancel one.
    """

    DOUBT = "in doubt, for a person to resolve"
    UNANSWERED = "to be submitted once more with its key or id, and cancelled"
    UNCANCELLABLE = "going on at the provider, which takes no cancellation, until the job's end or the deadline"


@dataclass(frozen=True, slots=True)
class Hindered:
    """``polled``: a living watcher has its job, and may still hear that it has ended."""

    run: Run
    hindrance: Hindrance
    polled: bool = False


def hindered_runs(center: Center, scope: Scope) -> list[Hindered]:
    """Those of a scope's open runs that cannot be ended from here. Raises LedgerBusy."""
    if not any(run.is_job and run.state in HOLDS_SLOT for run in center.ledger.open_runs()):
        return []
    with center.ledger.snapshot():
        gathered = gather_evidence(center.surroundings, scope)
    found = [_hindered(center, each) for each in judge(gathered.evidence)]
    return [each for each in found if each is not None]


def refusal(hindered: Hindered) -> str:
    """One line: what is in the way of a stop, and what to do."""
    run = hindered.run
    match hindered.hindrance:
        case Hindrance.DOUBT:
            why = (
                f"{run.doubt}; ask its provider, then say what became of it with `operations-center resolve "
                f"{run.run_id}`"
            )
        case Hindrance.UNANSWERED:
            why = (
                f"its submission has no answer, and no watcher of role {run.role} is there to send it again; the stop "
                "is stored: start the fleet (`operations-center up`), which learns its job's id and cancels it, or say "
                f"what became of it with `operations-center resolve {run.run_id}`"
            )
        case Hindrance.UNCANCELLABLE:
            deadline = f" or until its deadline at {rfc3339(run.deadline_at)}" if run.deadline_at is not None else ""
            why = (
                f"backend {run.backend} names no way to cancel a job; the stop is stored: its job goes on, and its "
                f"slot is held, until it ends{deadline}"
            )
    return f"cannot stop run {run.run_id}: {why}"


def named(hindered: Iterable[Hindered]) -> str:
    """All of them in one line, by what is in the way."""
    by_kind: Mapping[Hindrance, list[Run]] = {kind: [] for kind in Hindrance}
    for each in hindered:
        by_kind[each.hindrance].append(each.run)
    return "; ".join(f"{listed(runs)}, {kind}" for kind, runs in by_kind.items() if runs)


def without(runs: Iterable[Run], hindered: Iterable[Hindered]) -> Sequence[Run]:
    names = {each.run.run_id for each in hindered}
    return [run for run in runs if run.run_id not in names]


def _hindered(center: Center, judgement: Judgement) -> Hindered | None:
    run = judgement.evidence.run
    if not run.is_job or run.state not in HOLDS_SLOT:
        return None
    if run.doubt is not None:
        return Hindered(run, Hindrance.DOUBT)
    if judgement.verdict is Verdict.RESUBMIT:
        return Hindered(run, Hindrance.UNANSWERED)
    backend = center.job_backends.get(run.backend)
    if run.provider_job_id is not None and backend is not None and not backend.can_cancel:
        polled = judgement.evidence.poller is not Sighting.GONE
        return Hindered(run, Hindrance.UNCANCELLABLE, polled)
    return None
