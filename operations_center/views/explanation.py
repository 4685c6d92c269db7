"""What ``explain`` says of a run: the evidence, the verdict, what reconciliation would do, and what would change it."""

from collections.abc import Sequence
from typing import Any

from operations_center.clock import rfc3339
from operations_center.in_flight_reconcile import Evidence, Judgement, Verdict, explain_run
from operations_center.in_flight_reconcile.facts import JobFacts
from operations_center.in_flight_reconcile.plan import Action
from operations_center.keeper.handed_on import processes_by_run
from operations_center.keeper.inspect import ExitRecord, UnreadableExit
from operations_center.keeper.result import Result, UnreadableResult
from operations_center.model import Run
from operations_center.presentation import run_as_json
from operations_center.wiring import Center

WOULD_CHANGE = {
    1: "its finisher dies, or has not told the board after 30 s: then it is told by whoever looks next",
    2: "somebody tells the board and closes the run",
    3: "its watcher begins to submit it, or dies, or has not begun after 10 s",
    4: "its watcher begins to submit it before its slot is freed",
    5: "its provider answers; its submitter dies, or has no answer in time",
    6: "its submitter ends, or records an answer",
    7: "a person resolves it before its slot is freed",
    8: "a person resolves it, or its deadline passes; where its provider takes a key, a watcher of its role",
    9: "its job ends; its poller dies; a stop, its deadline or a cancelled task",
    10: "its provider says that its job has ended, or its grace is over",
    11: "a watcher of its role adopts it; its provider may be asked again",
    12: "a watcher of its role adopts it before its provider is asked",
    13: "the lease of its host expires without being renewed",
    14: "its host renews its lease before the slot is freed",
    15: "the other holder of this identity is shut down, or its host renews a lease again",
    16: "nothing: a run cannot come back from another boot",
    17: "nothing: a run cannot come back from another boot",
    18: "its keeper passes the gate; or its watcher dies, or 10 s pass, and the reservation is revoked",
    19: "its keeper passes the gate before reconciliation creates it",
    20: "its last process ends: then its slot is free",
    21: "its last process ends: then its slot is free",
    22: "the executor appears or the keeper ends; after 5 s what is left is ended",
    23: "its last process ends: then its slot is free",
    24: "its watcher dies; a stop, its deadline or a cancelled task; its executor ends",
    25: "a watcher of its role adopts it, or its executor ends",
    26: "nothing: its processes are gone and its record is whole",
    27: "its exit record becomes readable before it is settled",
    28: "its run directory comes back before its slot is freed",
    29: "nothing: its processes are gone, and nobody is left to write a record",
    30: "evidence that can be read: a process, its gate, its directory or its lock shows what it is",
}
"""By row of the verdict table."""

WOULD_DO = {
    Verdict.KEEP: "nothing: the run is as it should be",
    Verdict.SUSPECT: "nothing: neither life nor death is proven, so its slot stays held",
    Verdict.REPLAY: "take over, tell the board how it ended, close the run",
    Verdict.ORPHAN: "free its slot",
    Verdict.SETTLE: "record its outcome and free its slot",
    Verdict.STOP: "TERM to its processes, KILL after its grace; its slot stays held until they are gone",
    Verdict.CANCEL: "TERM to its processes, KILL after its grace; its slot stays held until they are gone",
    Verdict.REAP: "TERM to the processes that are left, KILL after its grace; its slot stays held until they are gone",
    Verdict.ADOPT: "a watcher of its role takes it over, whatever caps and pauses; it runs on",
    Verdict.UNKNOWABLE: "free its slot; only a person can tell how it ended",
}

WOULD_DO_OF_A_JOB = WOULD_DO | {
    Verdict.STOP: "cancel its job at the provider, if that has not ended",
    Verdict.CANCEL: "cancel its job at the provider, if that has not ended",
    Verdict.ADOPT: "a watcher of its role polls it on, whatever caps and pauses",
    Verdict.RESUBMIT: "a watcher of its role sends the same request again, with the same key",
    Verdict.ASK_PROVIDER: "ask its provider; if its job has ended, fetch what it has made and settle",
}
_HELD = "its slot stays held until its deadline, or until a person says what became of it (`resolve`)"
IN_DOUBT = f"block its task; {_HELD}"
IN_DOUBT_AND_TOLD = f"nothing: its task is blocked; {_HELD}"


def explain(center: Center, run: Run) -> dict[str, Any]:
    """The document of ``explain --json``. For a closed run: how it ended, by what proof, and when."""
    explained = explain_run(center.surroundings, run.run_id)
    if explained is None:
        return _closed(center.ledger.run(run.run_id) or run)
    judgement, actions = explained
    seen = judgement.evidence
    return {
        "run_id": run.run_id,
        "run": run_as_json(seen.run),
        "verdict": judgement.verdict,
        "row": judgement.rule.row,
        "reason": judgement.rule.reason,
        "proof": actions[0].proof if actions else None,
        "evidence": evidence_as_json(seen),
        "would_do": _would_do(judgement, actions),
        "actions": [action_as_json(action) for action in actions],
        "would_change": WOULD_CHANGE[judgement.rule.row],
    }


def _would_do(judgement: Judgement, actions: Sequence[Action]) -> str:
    if not judgement.evidence.run.is_job:
        return WOULD_DO[judgement.verdict]
    in_doubt = judgement.verdict is Verdict.UNKNOWABLE and judgement.rule.proof is None
    if in_doubt:
        return IN_DOUBT if actions else IN_DOUBT_AND_TOLD
    return WOULD_DO_OF_A_JOB[judgement.verdict]


def _closed(run: Run) -> dict[str, Any]:
    """Beside how it ended, name the processes that carry its id still: it has handed work to a daemon."""
    handed_on = processes_by_run().get(run.run_id, [])
    return {
        "run_id": run.run_id,
        "run": run_as_json(run),
        "verdict": None,
        "row": None,
        "reason": run.reason,
        "proof": run.proof,
        "evidence": {"handed_on": handed_on} if handed_on else {},
        "would_do": f"nothing: the run ended as {run.outcome} and was closed at {rfc3339(run.closed_at)}",
        "actions": [],
        "would_change": None,
    }


def action_as_json(action: Action) -> dict[str, Any]:
    ending, order = action.ending, action.order
    return {
        "rule": action.rule,
        "verdict": action.verdict,
        "deed": action.deed,
        "proof": action.proof,
        "reason": action.reason,
        "outcome": ending.outcome if ending else order.outcome if order else None,
        "outcome_reason": ending.reason if ending else order.reason if order else None,
        "exit_code": ending.exit_code if ending else None,
    }


def evidence_as_json(seen: Evidence) -> dict[str, Any]:
    """Every fact that the judgement could look at; durations in milliseconds."""
    return _of_a_program(seen) if seen.job is None else _of_a_job(seen, seen.job)


def _of_a_job(seen: Evidence, job: JobFacts) -> dict[str, Any]:
    run, memory = seen.run, job.memory
    return {
        "place": seen.place.value,
        "poller": seen.poller.value,
        "lease": seen.lease.value,
        "submitting_ms": seen.submitting_ms if run.submitting_mono is not None else None,
        "submit_timeout_ms": job.submit_timeout_ms,
        "may_submit_again": job.may_submit_again,
        "provider_job_id": run.provider_job_id,
        "doubt": run.doubt,
        "said": memory.word if memory else None,
        "progress": memory.progress if memory else None,
        "heard_ms": job.heard_ms,
        "failures": memory.failures if memory else 0,
        "trouble": memory.trouble if memory else None,
        "may_ask": job.may_ask,
        "task": seen.task,
        "stop_reason": run.stop_reason,
        "past_deadline": seen.overdue,
        "reserved_ms": seen.reserved_ms,
        "settled_ms": seen.settled_ms if seen.settling else None,
        "read_at": rfc3339(seen.now.wall),
    }


def _of_a_program(seen: Evidence) -> dict[str, Any]:
    return {
        "place": seen.place.value,
        "watcher": seen.watcher.value,
        "lease": seen.lease.value,
        "gate": seen.gate,
        "keeper": seen.keeper.value,
        "executor": seen.executor.value,
        "tree": seen.tree.value,
        "processes": [process.pid for process in seen.seen.members] if seen.seen else None,
        "cgroup_populated": seen.seen.populated if seen.seen else None,
        "lock_held": seen.lock_held,
        "directory": seen.directory.value,
        "exit_record": _exit_record(seen.exit_record),
        "exit_age_ms": seen.exit_age_ms if seen.exit_recorded else None,
        "result": _result(seen.result),
        "timed_out": seen.timed_out,
        "task": seen.task,
        "stop_reason": seen.run.stop_reason,
        "past_deadline": seen.past_deadline,
        "childless_ms": seen.childless_ms,
        "reserved_ms": seen.reserved_ms,
        "settled_ms": seen.settled_ms if seen.settling else None,
        "read_at": rfc3339(seen.now.wall),
    }


def _exit_record(record: ExitRecord | UnreadableExit | None) -> str | None:
    match record:
        case None:
            return None
        case ExitRecord(code):
            return f"exit {code}"
        case UnreadableExit(reason):
            return reason


def _result(result: Result | UnreadableResult | None) -> str | None:
    match result:
        case None:
            return None
        case UnreadableResult(reason):
            return reason
        case _:
            return f"{result.outcome or 'no outcome'}" + (f": {result.summary}" if result.summary else "")
