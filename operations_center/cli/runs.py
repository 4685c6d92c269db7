"""``runs``: what the ledger knows of runs, newest first."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json, print_table
from operations_center.cli.output import fit
from operations_center.clock import rfc3339
from operations_center.model import Run
from operations_center.presentation import run_as_json
from operations_center.store import Access
from operations_center.wiring import Center

USUAL_LIMIT = 50
LONGEST_REASON = 80


@click.command("runs")
@click.option("--open", "only_open", is_flag=True, help="All runs that are not closed.")
@click.option("--task", "task_id", help="Only runs of this task.")
@click.option("--backend", help="Only runs on this backend.")
@click.option("--limit", type=click.IntRange(1, 1_000_000_000), help=f"At most so many (default: {USUAL_LIMIT}).")
@config_option
@json_option
def command(
    only_open: bool,
    task_id: str | None,
    backend: str | None,
    limit: int | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    with opened(config_file, Access.READ) as center:
        runs = _open_runs(center, task_id, backend)[:limit] if only_open else _recent(center, task_id, backend, limit)
    if as_json:
        print_json({"runs": [run_as_json(run) for run in runs]})
        return
    print_table(
        ("RUN", "TASK", "ROLE", "BACKEND", "ATTEMPT", "STATE", "OUTCOME", "STARTED", "REASON"),
        [_row(run) for run in runs],
    )


def _open_runs(center: Center, task_id: str | None, backend: str | None) -> list[Run]:
    runs = center.ledger.open_runs(backend=backend)
    return [run for run in reversed(runs) if task_id in (None, run.task_id)]


def _recent(center: Center, task_id: str | None, backend: str | None, limit: int | None) -> list[Run]:
    return center.ledger.recent_runs(task_id=task_id, backend=backend, limit=limit or USUAL_LIMIT)


def _row(run: Run) -> tuple[object, ...]:
    started = rfc3339(run.started_at)
    reason = fit(run.reason or run.doubt or run.stop_reason or "", LONGEST_REASON)
    return (run.run_id, run.task_id, run.role, run.backend, run.attempt, run.state, run.outcome, started, reason)
