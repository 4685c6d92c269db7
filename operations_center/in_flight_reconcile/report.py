"""What a reconciliation says of itself: the document of ``reconcile --json``."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import asdict

from operations_center.clock import rfc3339
from operations_center.in_flight_reconcile.facts import Evidence, Verdict
from operations_center.in_flight_reconcile.orphans import Judgement
from operations_center.in_flight_reconcile.plan import Action, Deed

SUMMED_UP = 20
"""Actions that a line for a log names."""


class Trigger(StrEnum):
    STARTUP = "startup"
    WATCHDOG = "watchdog"
    ADMISSION = "admission"
    WATCHER = "watcher"
    CLI = "cli"
    HTTP = "http"


class Mode(StrEnum):
    APPLY = "apply"
    DRY_RUN = "dry_run"


class Skipped(StrEnum):
    LOCK_HELD = "lock_held"
    BUDGET = "budget"
    BOARD_UNREACHABLE = "board_unreachable"


class Done(StrEnum):
    """What became of an action. UNSURE: a provider was asked, and nothing was learned; not listed."""

    APPLIED = "applied"
    WOULD_APPLY = "would_apply"
    LOST_RACE = "lost_race"
    ERROR = "error"
    UNSURE = "unsure"


class ActionReport(msgspec.Struct, frozen=True, gc=False):
    """``said``: the word of a provider that was asked, for a job that goes on; if UNSURE, why nothing was learned."""

    action: Action
    done: Done
    error: str | None = None
    said: str | None = None

    @property
    def run_id(self) -> str | None:
        return self.action.run.run_id if self.action.run else None

    @property
    def summary(self) -> str:
        action = self.action
        subject = self.run_id or action.task_id
        why = self.said if self.done is Done.UNSURE else action.proof or action.reason
        return f"{action.verdict or action.rule} of {subject} {self.done} ({why})"

    def as_json(self) -> dict[str, Any]:
        action, run = self.action, self.action.run
        return {
            "run_id": self.run_id,
            "task_id": action.task_id,
            "backend": run.backend if run else None,
            "started_at": rfc3339(run.started_at or run.reserved_at) if run else None,
            "rule": action.rule,
            "verdict": action.verdict,
            "proof": action.proof,
            "reason": action.reason,
            "outcome": action.ending.outcome if action.ending else None,
            "said": self.said,
            "action": self.done,
            "error": self.error,
        }


class JobReport(msgspec.Struct, frozen=True, gc=False):
    """What is known of a job without asking: no payload, no secret. Ages in seconds.

    ``stale``: not heard of for longer than its backend's ``min_age``. ``eligible``: a timer may ask about it now.
    """

    run_id: str
    backend: str
    provider_job_id: str | None
    said: str | None
    age_seconds: float | None
    heard_seconds: float
    stale: bool
    eligible: bool
    failures: int
    trouble: str | None
    next_ask_at: str | None
    backoff_seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def report_job(evidence: Evidence) -> JobReport:
    run, job = evidence.run, evidence.job
    assert job is not None
    memory = job.memory
    ask_at = memory.ask_at if memory is not None else None
    age = evidence.now.wall - run.submitting_at if run.submitting_at is not None else None
    return JobReport(
        run_id=run.run_id,
        backend=run.backend,
        provider_job_id=run.provider_job_id,
        said=memory.word if memory is not None else None,
        age_seconds=age / 1000 if age is not None else None,
        heard_seconds=job.heard_ms / 1000,
        stale=job.heard_ms > job.min_age_ms,
        eligible=job.is_eligible,
        failures=memory.failures if memory is not None else 0,
        trouble=memory.trouble if memory is not None else None,
        next_ask_at=rfc3339(ask_at),
        backoff_seconds=max(0, ask_at - evidence.now.wall) / 1000 if ask_at is not None else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Report:
    """``wall_ms`` is how long it took; ``started_at`` wall-clock ms.

    ``unsure``: jobs that were asked about, and of which nothing was learned. They are suspect, and no actions.
    """

    trigger: Trigger
    mode: Mode
    host: str
    started_at: int
    wall_ms: float = 0.0
    skipped: Skipped | None = None
    error: str | None = None
    verdicts: tuple[tuple[str, int], ...] = ()
    scanned_count: int = 0
    actions: tuple[ActionReport, ...] = ()
    unsure: tuple[ActionReport, ...] = ()
    violations: tuple[str, ...] = ()
    min_age_ms: int = 0
    jobs: tuple[JobReport, ...] = ()

    @property
    def summary(self) -> str:
        """One line for a log."""
        told = self.actions + self.unsure
        done = "; ".join(each.summary for each in told[:SUMMED_UP])
        if len(told) > SUMMED_UP:
            done += f"; and {len(told) - SUMMED_UP} more"
        what = self.skipped or self.error
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts) or "nothing open"
        return f"{verdicts} in {self.wall_ms:.1f} ms" + (f"; {done}" if done else "") + (f"; {what}" if what else "")

    @property
    def applied(self) -> int:
        return sum(action.done is Done.APPLIED for action in self.actions)

    @property
    def asked(self) -> list[str]:
        """Runs whose jobs providers were asked about, and that go on."""
        asks = [each for each in self.actions if each.action.deed is Deed.ASK and each.done is not Done.LOST_RACE]
        return [each.run_id for each in (*asks, *self.unsure) if each.run_id is not None]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "trigger": self.trigger,
            "mode": self.mode,
            "host": self.host,
            "started_at": rfc3339(self.started_at),
            "wall_ms": round(self.wall_ms, 2),
            "skipped": self.skipped,
            "error": self.error,
            "scanned_count": self.scanned_count,
            "count": len(self.actions),
            "min_age_seconds": self.min_age_ms / 1000,
            "verdicts": dict(self.verdicts),
            "actions": [action.as_json() for action in self.actions],
            "jobs": [job.as_json() for job in self.jobs],
            "invariant_violations": list(self.violations),
        }


def count_verdicts(judgements: Iterable[Judgement]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(judgement.verdict.value for judgement in judgements).items()))


def with_done(report: Report, done: Sequence[ActionReport]) -> Report:
    """The report with what became of its actions: a job of which nothing was learned is suspect, with the trouble."""
    unsure = tuple(each for each in done if each.done is Done.UNSURE)
    verdicts = Counter(dict(report.verdicts))
    verdicts.subtract(each.action.verdict.value for each in unsure if each.action.verdict is not None)
    verdicts[Verdict.SUSPECT.value] += len(unsure)
    jobs = {each.run_id: report_job(each.action.evidence) for each in unsure if each.action.evidence is not None}
    return replace(
        report,
        actions=tuple(each for each in done if each.done is not Done.UNSURE),
        unsure=unsure,
        verdicts=tuple(sorted((+verdicts).items())),
        jobs=tuple(jobs.get(job.run_id, job) for job in report.jobs),
    )


def would_apply(actions: Sequence[Action]) -> tuple[ActionReport, ...]:
    return tuple(ActionReport(action, Done.WOULD_APPLY) for action in actions)
