"""What the ledger and the configuration know of jobs: how old they are, and whether their provider may be asked."""

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from operations_center.clock import Now
from operations_center.in_flight_reconcile.facts import JobFacts
from operations_center.in_flight_reconcile.surroundings import BY_TIMER, Asking, Surroundings
from operations_center.model import Health, JobMemory, Run
from operations_center.providers import JobBackend
from operations_center.providers.health import may_be_asked


def job_facts(surroundings: Surroundings, runs: Sequence[Run], asking: Asking | None, now: Now) -> dict[str, JobFacts]:
    """By run; of these runs, which are jobs. Without ``asking`` no provider may be asked."""
    if not runs:
        return {}
    memories, health = surroundings.ledger.jobs([run.run_id for run in runs]), surroundings.ledger.health()
    facts = {}
    for run in runs:
        memory, backend = memories.get(run.run_id), surroundings.job_backends.get(run.backend)
        heard_at = memory.heard_at if memory is not None else run.submitting_at
        heard_ms = max(0, now.wall - heard_at) if heard_at is not None else 0
        if backend is None:
            facts[run.run_id] = JobFacts(heard_ms=heard_ms, memory=memory)
            continue
        asked = partial(_may_be_asked, run.run_id, backend, health.get(run.backend), memory, heard_ms, now.wall)
        facts[run.run_id] = JobFacts(
            may_ask=asking is not None and asked(asking),
            may_submit_again=backend.may_submit_again and run.role in surroundings.roles,
            submit_timeout_ms=backend.submit_timeout_ms,
            heard_ms=heard_ms,
            min_age_ms=backend.min_age_ms,
            is_eligible=asked(BY_TIMER),
            memory=memory,
        )
    return _with_limit(facts, asking)


def _may_be_asked(
    run_id: str,
    backend: JobBackend,
    health: Health | None,
    memory: JobMemory | None,
    heard_ms: int,
    now: int,
    asking: Asking,
) -> bool:
    if not (asking.by_person or backend.asks_by_itself):
        return False
    again_after_ms = asking.again_after_ms.get(run_id)
    if again_after_ms is not None:
        return heard_ms >= again_after_ms and may_be_asked(health, memory, now, by_person=False)
    default_ms = 0 if asking.by_person else backend.min_age_ms
    if heard_ms < (default_ms if asking.min_age_ms is None else asking.min_age_ms):
        return False
    return may_be_asked(health, memory, now, by_person=asking.by_person)


def _with_limit(facts: dict[str, JobFacts], asking: Asking | None) -> dict[str, JobFacts]:
    """Those that were heard of longest ago, when there are too many."""
    wanted = sorted((run_id for run_id, each in facts.items() if each.may_ask), key=lambda each: -facts[each].heard_ms)
    late = wanted[asking.limit :] if asking is not None else []
    return facts | {run_id: replace(facts[run_id], may_ask=False) for run_id in late}
