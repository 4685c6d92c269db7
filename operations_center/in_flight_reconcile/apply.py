"""One guarded write per action. Whoever was quicker wins; the other reports ``lost_race`` and changes nothing."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.in_flight_reconcile.asking import Asked, look_after_all
from operations_center.in_flight_reconcile.escalation import escalate, request_stop
from operations_center.in_flight_reconcile.evidence import cgroup_of
from operations_center.in_flight_reconcile.facts import Evidence, Sighting
from operations_center.in_flight_reconcile.job_records import ending_found, note_of, record_doubt, record_findings
from operations_center.in_flight_reconcile.plan import Action, Deed
from operations_center.in_flight_reconcile.report import ActionReport, Done
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import GateState, TreeQuery, find_trees
from operations_center.keeper.launch import revoke
from operations_center.locks import is_locked
from operations_center.model import JobMemory, Proof, Run, RunState
from operations_center.providers.looking import Going, Unsure
from operations_center.settlement import Ended

BATCH = 1000
"""Runs that are freed in one transaction: one sync for all of them, and nobody else writes meanwhile."""

HOLD_TASK_MS = 60_000

_log = logging.getLogger(__name__)


def apply_actions(
    surroundings: Surroundings, actions: Sequence[Action], trigger: str, out_of_time: Callable[[], bool]
) -> list[ActionReport]:
    """Do what was planned; what the time did not suffice for is not in the answer."""
    reports = []
    for batch in _batches(actions):
        if out_of_time():
            break
        reports += _free(surroundings, batch, trigger)
    for action in actions:
        if action.deed in _FREEING or action.deed is Deed.ASK:
            continue
        if out_of_time():
            return reports
        reports.append(_apply_one(surroundings, action))
    asking = [action for action in actions if action.deed is Deed.ASK]
    return reports + (_ask(surroundings, asking, trigger) if asking else [])


_FREEING = frozenset({Deed.FREE, Deed.REVOKE_AND_FREE, Deed.REPLAY})


def _batches(actions: Sequence[Action]) -> Iterator[Sequence[Action]]:
    """Slots first: what is to be settled, then what has settled already."""
    for wanted in ([Deed.FREE, Deed.REVOKE_AND_FREE], [Deed.REPLAY]):
        some = [action for action in actions if action.deed in wanted]
        for begin in range(0, len(some), BATCH):
            yield some[begin : begin + BATCH]


def _free(surroundings: Surroundings, batch: Sequence[Action], trigger: str) -> list[ActionReport]:
    """Settle all, then tell the board of all, then close all: three syncs, however many runs."""
    barred = _close_gates(surroundings, [action for action in batch if _needs_gate(action)])
    free = [action for action in batch if id(action) not in barred]
    return [*barred.values(), *_settle_and_finish(surroundings, free, trigger)]


def _settle_and_finish(surroundings: Surroundings, batch: Sequence[Action], trigger: str) -> list[ActionReport]:
    try:
        settled = list(zip(batch, _settle(surroundings, batch, trigger), strict=True))
    except Unavailable as error:
        return [ActionReport(action, Done.ERROR, str(error)) for action in batch]
    except Exception as error:
        if len(batch) == 1:
            return [_failed(batch[0], error)]
        # One run that cannot be settled must not keep the slots of the others.
        return [report for action in batch for report in _settle_and_finish(surroundings, [action], trigger)]
    freed = [(action, run) for action, run in settled if run is not None]
    # Before they are closed: of a closed run nobody looks after what we leave behind.
    for action, run in freed:
        _remove_cgroup(surroundings, action, run)
    untold = _tell_board(surroundings, [run for _, run in freed])
    return [_freed(action, run, untold) for action, run in settled]


def _close_gates(surroundings: Surroundings, actions: Sequence[Action]) -> dict[int, ActionReport]:
    """Create the gates before slots are freed: after this no keeper can start anything for these runs.

    The reports of those that must not be freed, by the action's ``id``. Looked at once more: with the gate
    created, what lives on had passed another one, which was deleted.
    """
    barred = {}
    queries = []
    for action in actions:
        report = _close_gate(surroundings, action)
        if report is not None:
            barred[id(action)] = report
        elif action.proof is not Proof.LEASE_EXPIRED:
            queries.append(_query(surroundings, action))
    trees = find_trees(queries, surroundings.processes.scan)
    for action in actions:
        tree = trees.get(_run_of(action).run_id)
        if id(action) not in barred and tree is not None and not tree.is_empty:
            barred[id(action)] = ActionReport(action, Done.LOST_RACE)
    return barred


def _close_gate(surroundings: Surroundings, action: Action) -> ActionReport | None:
    directory = surroundings.directory_of(_run_of(action).run_id)
    try:
        won = revoke(Path(directory))
    except OSError as error:
        return ActionReport(action, Done.ERROR, f"cannot create the gate: {error}")
    # A keeper of another pid namespace that has passed it cannot be seen from here: its lock and its lease tell.
    silent = action.proof is Proof.LEASE_EXPIRED and not is_locked(f"{directory}/lock")
    return None if won or silent else ActionReport(action, Done.LOST_RACE)


def _query(surroundings: Surroundings, action: Action) -> TreeQuery:
    run = _run_of(action)
    return TreeQuery(run.run_id, run.keeper, cgroup_of(run, surroundings.directory_of(run.run_id)))


def _evidence_of(action: Action) -> Evidence:
    assert action.evidence is not None
    return action.evidence


def _run_of(action: Action) -> Run:
    assert action.run is not None
    return action.run


def _needs_gate(action: Action) -> bool:
    """Whatever the verdict: as long as nobody has created the gate, a spawner that wakes up could."""
    seen = action.evidence
    undecided = seen is not None and seen.gate is GateState.ABSENT and seen.directory is Sighting.ALIVE
    elsewhere = action.proof is Proof.LEASE_EXPIRED
    return action.deed is Deed.REVOKE_AND_FREE or (action.deed is Deed.FREE and (undecided or elsewhere))


def _freed(action: Action, run: Run | None, untold: Mapping[str, str]) -> ActionReport:
    if run is None:
        return ActionReport(action, Done.LOST_RACE)
    error = untold.get(run.run_id)
    if error is None:
        return ActionReport(action, Done.APPLIED)
    return ActionReport(action, Done.ERROR if action.deed is Deed.REPLAY else Done.APPLIED, error)


def _failed(action: Action, error: Exception) -> ActionReport:
    run_id = action.run.run_id if action.run else action.task_id
    expected = isinstance(error, OperationsCenterError | OSError)
    _log.error("cannot reconcile %s: %s", run_id, error, exc_info=not expected)
    return ActionReport(action, Done.ERROR, str(error) or type(error).__name__)


def _settle(surroundings: Surroundings, batch: Sequence[Action], trigger: str) -> list[Run | None]:
    """A batch is settled or, if its runs have settled already, taken over; see ``_batches``."""
    if batch[0].deed is Deed.REPLAY:
        return surroundings.settlement.take_over_all([_run_of(action) for action in batch], surroundings.me)
    return surroundings.settlement.settle_all([_ended(action, trigger) for action in batch], surroundings.me)


def _ended(action: Action, trigger: str) -> Ended:
    assert action.ending is not None
    note = {"trigger": trigger, "rule": action.rule, "verdict": action.verdict, "evidence": action.reason}
    return Ended(_run_of(action), action.ending, {**note, **action.note})


def _remove_cgroup(surroundings: Surroundings, action: Action, run: Run) -> None:
    seen = action.evidence.seen if action.evidence is not None else None
    path = seen.query.cgroup if seen is not None else cgroup_of(run, surroundings.directory_of(run.run_id))
    if path is not None:
        cgroup.remove(path)


def _tell_board(surroundings: Surroundings, settled: Sequence[Run]) -> dict[str, str]:
    """Why the board could not be told, by run: those stay settling and are told of later."""
    if not settled:
        return {}
    try:
        surroundings.settlement.finish_and_close(settled)
    except Unavailable as error:
        return {run.run_id: str(error) for run in settled}
    except Exception as error:
        if len(settled) == 1:
            _log.error("cannot finish run %s: %s", settled[0].run_id, error)
            return {settled[0].run_id: str(error) or type(error).__name__}
        return {run_id: why for run in settled for run_id, why in _tell_board(surroundings, [run]).items()}
    finally:
        surroundings.wake_everybody()
    return {}


def _ask(surroundings: Surroundings, actions: Sequence[Action], trigger: str) -> list[ActionReport]:
    """Ask providers about jobs that nobody polls, those heard of longest ago first; what has ended is settled."""
    stored = [(action, _with_stop_stored(surroundings, action)) for action in sorted(actions, key=_heard_last)]
    asked = {run.run_id: action for action, run in stored if run is not None}
    reports = [ActionReport(action, Done.LOST_RACE) for action, run in stored if run is None]
    for found in look_after_all(surroundings, [run for _, run in stored if run is not None]):
        memories = record_findings(surroundings, found, {"trigger": trigger})
        reports += _act_on(surroundings, found, memories, asked, trigger)
    return reports


def _heard_last(action: Action) -> int:
    assert action.evidence is not None
    assert action.evidence.job is not None
    return -action.evidence.job.heard_ms


def _with_stop_stored(surroundings: Surroundings, action: Action) -> Run | None:
    if action.order is None:
        return _run_of(action)
    return request_stop(surroundings.ledger, surroundings.clock, _run_of(action), action.order)


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
        ending = ending_found(each.run, each.finding, memory, past_grace=_evidence_of(action).past_grace)
        if ending is not None:
            note = note_of(each.run, each.finding)
            over.append(replace(action, deed=Deed.FREE, ending=ending, proof=ending.proof, note=note))
        elif isinstance(each.finding, Unsure):
            reports.append(ActionReport(_asked_in_vain(action, memory), Done.UNSURE, said=each.finding.reason))
        else:
            said = each.finding.heard.word if isinstance(each.finding, Going) else None
            reports.append(ActionReport(action, Done.APPLIED, said=said))
    return reports + (_settle_and_finish(surroundings, over, trigger) if over else [])


def _asked_in_vain(action: Action, memory: JobMemory | None) -> Action:
    """With the trouble in its evidence; no timer asks again at once."""
    seen = _evidence_of(action)
    assert seen.job is not None
    return replace(action, evidence=replace(seen, job=replace(seen.job, memory=memory, is_eligible=False)))


def _doubt(surroundings: Surroundings, action: Action) -> bool:
    return record_doubt(surroundings, _run_of(action), action.reason) is not None


def _tell_poller(surroundings: Surroundings, action: Action) -> bool:
    assert action.order is not None
    told = request_stop(surroundings.ledger, surroundings.clock, _run_of(action), action.order)
    surroundings.wake_everybody()
    return told is not None


def _apply_one(surroundings: Surroundings, action: Action) -> ActionReport:
    try:
        return ActionReport(action, Done.APPLIED if _DEEDS[action.deed](surroundings, action) else Done.LOST_RACE)
    except Exception as error:
        return _failed(action, error)


def _stop(surroundings: Surroundings, action: Action) -> bool:
    assert action.evidence is not None
    assert action.order is not None
    ledger, clock, processes = surroundings.ledger, surroundings.clock, surroundings.processes
    return escalate(ledger, clock, processes, action.evidence, action.order) is not None


def _adopt(surroundings: Surroundings, action: Action) -> bool:
    assert action.evidence is not None
    run, tree = _run_of(action), action.evidence.seen
    keeper = tree.query.keeper if tree else run.keeper
    adopted = surroundings.ledger.change_run(
        run,
        "run.adopted",
        note={"from_watcher": run.watcher_pid, "evidence": action.reason},
        state=RunState.RUNNING,
        holder=run.holder + 1,
        watcher_pid=surroundings.me.pid,
        watcher_ticks=surroundings.me.start_ticks,
        keeper_pid=keeper.pid if keeper else None,
        keeper_ticks=keeper.start_ticks if keeper else None,
        cgroup=str(tree.query.cgroup) if tree and tree.query.cgroup else run.cgroup,
        started_at=run.started_at or surroundings.clock.now().wall,
        **(_brought_here(surroundings, run) if run.is_job else {}),
    )
    return adopted is not None


def _brought_here(surroundings: Surroundings, run: Run) -> dict[str, Any]:
    """A job outlives its boot and its host: from now on its poller, and its deadline's clock, are those of this one."""
    host = surroundings.host
    return {
        "host_id": host.host_id,
        "boot_id": host.boot_id,
        "pid_namespace": host.pid_namespace,
        "host": host.name,
        "deadline_mono": run.deadline_mono if run.boot_id == host.boot_id else _deadline_here(surroundings, run),
    }


def _deadline_here(surroundings: Surroundings, run: Run) -> int | None:
    """By the wall clock, which is all that two boots share; no later than if the run began now, should it be wrong."""
    now = surroundings.clock.now()
    if run.deadline_at is None:
        return None
    return now.monotonic + min(run.deadline_at - now.wall, run.deadline_at - run.reserved_at)


def _requeue(surroundings: Surroundings, action: Action) -> bool:
    """The ledger holds the task meanwhile, so that nobody admits a run for it before the board is told."""
    assert action.claim is not None
    ledger, task_id = surroundings.ledger, action.claim.task_id
    if not ledger.hold_task(task_id, surroundings.clock.now().wall + HOLD_TASK_MS):
        return False
    try:
        return surroundings.board.requeue(action.claim)
    finally:
        ledger.release_task(task_id)
        surroundings.wake_everybody()


_DEEDS: dict[Deed, Callable[[Surroundings, Action], bool]] = {
    Deed.STOP: _stop,
    Deed.ADOPT: _adopt,
    Deed.REQUEUE: _requeue,
    Deed.DOUBT: _doubt,
    Deed.TELL_POLLER: _tell_poller,
}
