"""The jobs of runs, many at once: each is asked for at its provider, and what its end has left behind is fetched."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from operations_center.errors import OperationsCenterError
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.model import JobMemory, Run
from operations_center.providers import Job
from operations_center.providers.looking import Finding, Unsure, look_after

AT_ONCE = 32
"""Jobs that are asked for at the same time, of all providers together."""

BATCH_S = 0.05
"""Answers that come within it are recorded in one transaction."""

BEAT_S = 1.0

_log = logging.getLogger(__name__)


class Asked(msgspec.Struct, frozen=True):
    """A job that somebody looked after, and what was found."""

    run: Run
    finding: Finding


def job_of(run: Run, memory: JobMemory | None) -> Job:
    assert run.provider_job_id is not None
    return Job(run.provider_job_id, memory.urls if memory else {})


def artifacts_of(surroundings: Surroundings, run: Run) -> Path:
    return Path(surroundings.directory_of(run.run_id), "artifacts")


def look_after_all(surroundings: Surroundings, runs: Sequence[Run]) -> Iterator[list[Asked]]:
    """Ask for the jobs of runs, in their order and ``AT_ONCE`` at a time; what was found, as it comes.

    A run that is to stop has its job cancelled. ``surroundings.beat`` is called while nothing comes.
    """
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait  # noqa: PLC0415 - who never asks, never pays

    memories = surroundings.ledger.jobs([run.run_id for run in runs])
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ask")
    try:
        left = {pool.submit(_look_after, surroundings, run, memories.get(run.run_id)): run for run in runs}
        while left:
            done, _ = wait(left, BEAT_S, FIRST_COMPLETED)
            if done:
                done, _ = wait(left, BATCH_S)
                yield [Asked(left.pop(each), each.result()) for each in done]
            surroundings.beat()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _look_after(surroundings: Surroundings, run: Run, memory: JobMemory | None) -> Finding:
    backend = surroundings.job_backends.get(run.backend)
    if backend is None:
        return no_backend(run)
    try:
        job, artifacts = job_of(run, memory), artifacts_of(surroundings, run)
        return look_after(backend.provider, job, artifacts, end=run.stop_outcome is not None)
    except OperationsCenterError as error:
        return Unsure(str(error))
    except Exception as error:
        # A defect in one job's answer must not keep the others from theirs.
        _log.exception("the request for run %s failed", run.run_id)
        return Unsure(f"{type(error).__name__} in the request")


def no_backend(run: Run) -> Unsure:
    return Unsure(f"there is no backend {run.backend} any more", may_pass=False)
