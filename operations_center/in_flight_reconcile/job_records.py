"""What a provider's answers are made of in the ledger. Shared by the poller and by who asks out of turn.

What is written here is guarded like every change of a run: an answer that comes after somebody else has changed the run
changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from operations_center.in_flight_reconcile.asking import Asked
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.model import Finish, JobMemory, Outcome, Proof, Run, TaskState
from operations_center.outcomes import Ending, ending_of_job
from operations_center.providers import Ill, Job
from operations_center.providers.health import after_answer, pause_after_ms
from operations_center.providers.looking import Finding, Going, Over, Unsure

ASKS_IN_VAIN = 7
"""In a row, before a job is given up after its time. With the pauses between them a timer asks for five minutes."""


def record_job(surroundings: Surroundings, run: Run, job: Job) -> Run | None:
    """The id that a submission has brought; None when somebody else has changed the run. Raises LedgerBusy.

    It ends a doubt, and whoever was about to record one is too late.
    """
    now = surroundings.clock.now()
    with surroundings.ledger.transaction():
        surroundings.ledger.remember_jobs({run.run_id: JobMemory(urls=job.urls, heard_at=now.wall)})
        submitted = surroundings.ledger.change_run(
            run, "run.submitted", holder=run.holder + 1, provider_job_id=job.job_id, doubt=None
        )
        if submitted is None:
            note_unclaimed(surroundings, run.run_id, run.backend, job)
    return submitted


def note_unclaimed(surroundings: Surroundings, run_id: str, backend: str | None, job: Job) -> None:
    """An id that no run takes any more is kept as an event: it may cost money, and a person can cancel it."""
    surroundings.ledger.note("job.unclaimed", {"backend": backend, "provider_job_id": job.job_id}, run_id=run_id)


def record_doubt(surroundings: Surroundings, run: Run, reason: str) -> Run | None:
    """Nobody can know whether there is a job: its task is blocked at once, and its slot stays held.

    None when somebody else has changed the run. Raises BoardUnreachable with the doubt recorded: told of later.
    """
    doubted: Run | None = run
    if run.doubt is None:
        doubt = reason.rstrip(".")
        doubted = surroundings.ledger.change_run(run, "run.in_doubt", holder=run.holder + 1, doubt=doubt)
    if doubted is not None:
        finish = Finish(TaskState.BLOCKED, f"{doubted.doubt}; see `operations-center resolve {run.run_id}`")
        surroundings.board.block(run.task_id, run.run_id, finish)
        surroundings.wake_everybody()
    return doubted


def record_findings(
    surroundings: Surroundings, asked: Sequence[Asked], told: Mapping[str, Any] | None = None
) -> dict[str, JobMemory]:
    """Remember what was heard, by run, and how the providers are; with ``told``, an event for each of them."""
    now = surroundings.clock.now().wall
    ledger = surroundings.ledger
    before = ledger.jobs([each.run.run_id for each in asked])
    memories = {
        each.run.run_id: _after(before.get(each.run.run_id), each.finding, now)
        for each in asked
        if not isinstance(each.finding, Over)
    }
    with ledger.transaction():
        ledger.remember_jobs(memories)
        for each in asked:
            if not isinstance(each.finding, Unsure):
                record_health(surroundings, each.run.backend, None, None)
            elif each.finding.ill is not None:
                record_health(surroundings, each.run.backend, each.finding.ill, each.finding.retry_after_ms)
            if told is not None:
                ledger.note("job.asked", {**told, **_said(each)}, run_id=each.run.run_id)
    return memories


def record_health(surroundings: Surroundings, backend: str, ill: Ill | None, retry_after_ms: int | None) -> None:
    ledger, now = surroundings.ledger, surroundings.clock.now().wall
    before = ledger.health().get(backend)
    after = after_answer(before, ill, retry_after_ms, now)
    if after != before:
        ledger.set_health(backend, after)


def _after(before: JobMemory | None, finding: Finding, now: int) -> JobMemory:
    before = before or JobMemory(urls={}, heard_at=now)
    if isinstance(finding, Going):
        heard = finding.heard
        return JobMemory(urls=before.urls, heard_at=now, word=heard.word, progress=heard.progress)
    assert isinstance(finding, Unsure)
    failures = before.failures + 1
    return msgspec.structs.replace(
        before,
        failures=failures,
        trouble=finding.reason,
        ask_at=now + max(finding.retry_after_ms or 0, pause_after_ms(failures)),
    )


def _said(asked: Asked) -> dict[str, Any]:
    finding = asked.finding
    said = finding.reason if isinstance(finding, Unsure) else finding.heard.word
    decision = {Going: "runs", Over: "ended", Unsure: "unsure"}[type(finding)]
    return {"backend": asked.run.backend, "said": said, "decision": decision}


# What follows


def ending_found(run: Run, finding: Finding, memory: JobMemory | None, *, past_grace: bool) -> Ending | None:
    """The run's end, if that is what was found, or if there is no time left to find it.

    A job may have ended well while nobody could ask: no single question decides that it is given up.
    """
    if isinstance(finding, Over):
        return ending_of_job(run, finding)
    in_vain = memory is not None and memory.failures >= ASKS_IN_VAIN
    if isinstance(finding, Unsure) and past_grace and (in_vain or not finding.may_pass):
        reason = f"its provider has not said in time what became of its job: {finding.reason}"
        return Ending(Outcome.UNKNOWN, Proof.DEADLINE_PASSED, reason)
    return None


def note_of(run: Run, finding: Finding) -> dict[str, Any]:
    """What the log keeps of a job's end beside the run's columns."""
    artifacts = finding.artifacts if isinstance(finding, Over) else ()
    return {"provider_job_id": run.provider_job_id, "artifacts": msgspec.to_builtins(artifacts)}
