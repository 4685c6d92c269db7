"""Ask providers out of turn, about jobs that nobody polls, and act on what they say."""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from operations_center.in_flight_reconcile.asking import Asked, look_after_all
from operations_center.in_flight_reconcile.escalation import request_stop
from operations_center.in_flight_reconcile.freeing import settle_and_finish
from operations_center.in_flight_reconcile.job_records import ending_found, note_of, record_findings
from operations_center.in_flight_reconcile.plan import Action, Deed, evidence_of, run_of
from operations_center.in_flight_reconcile.report import ActionReport, Done
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.model import JobMemory, Run
from operations_center.providers.looking import Going, Unsure


def ask(surroundings: Surroundings, actions: Sequence[Action], trigger: str) -> list[ActionReport]:
    """Ask providers about jobs that nobody polls, those heard of longest ago first; what has ended is settled."""
    stored = [(action, _with_stop_stored(surroundings, action)) for action in sorted(actions, key=_heard_last)]
    asked = {run.run_id: action for action, run in stored if run is not None}
    reports = [ActionReport(action, Done.LOST_RACE) for action, run in stored if run is None]
    for found in look_after_all(surroundings, [run for _, run in stored if run is not None]):
        memories = record_findings(surroundings, found, {"trigger": trigger})
        reports += _act_on(surroundings, found, memories, asked, trigger)
    return reports


def _heard_last(action: Action) -> int:
    job = evidence_of(action).job
    assert job is not None
    return -job.heard_ms


def _with_stop_stored(surroundings: Surroundings, action: Action) -> Run | None:
    if action.order is None:
        return run_of(action)
    return request_stop(surroundings.ledger, surroundings.clock, run_of(action), action.order)


def _act_on(
    surroundings: Surroundings,
    found: Sequence[Asked],
    memories: Mapping[str, JobMemory],
    asked: Mapping[str, Action],
    trigger: str,
) -> list[ActionReport]:
    reports, over = [], []
    for each in found:
        action = replace(asked[each.run.run_id], run=each.run)
        memory = memories.get(each.run.run_id)
        ending = ending_found(each.run, each.finding, memory, past_grace=evidence_of(action).past_grace)
        if ending is not None:
            note = note_of(each.run, each.finding)
            over.append(replace(action, deed=Deed.FREE, ending=ending, proof=ending.proof, note=note))
        elif isinstance(each.finding, Unsure):
            reports.append(ActionReport(_asked_in_vain(action, memory), Done.UNSURE, said=each.finding.reason))
        else:
            said = each.finding.heard.word if isinstance(each.finding, Going) else None
            reports.append(ActionReport(action, Done.APPLIED, said=said))
    return reports + (settle_and_finish(surroundings, over, trigger) if over else [])


def _asked_in_vain(action: Action, memory: JobMemory | None) -> Action:
    """With the trouble in its evidence; no timer asks again at once."""
    seen = evidence_of(action)
    assert seen.job is not None
    return replace(action, evidence=replace(seen, job=replace(seen.job, memory=memory, is_eligible=False)))
