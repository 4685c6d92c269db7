"""``stop RUN``: end an executor."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.keeper.handed_on import processes_by_run
from operations_center.model import Run, RunState
from operations_center.presentation import run_as_json
from operations_center.stopping.runs import stop_run
from operations_center.store import Access


@click.command("stop")
@click.argument("run_id", metavar="RUN")
@click.option("--reason", metavar="TEXT", help="Kept with the run, and shown at its task.")
@click.option("--no-wait", is_flag=True, help="Return when the executor was told, not when it has ended.")
@config_option
@json_option
def command(run_id: str, reason: str | None, no_wait: bool, config_file: Path | None, as_json: bool) -> int:
    """End a run's executor; its task becomes blocked.

    TERM first, KILL after the backend's grace. Works with and without a fleet. What keeps a run from being ended from
    here is told, with exit code 1. Where the ledger cannot be written, for a full disk or a read-only file system, the
    executor is ended by KILL at once; exit code 75 says that this could not be recorded.
    """
    with opened(config_file, Access.END) as center:
        run = stop_run(center, run_id, reason, wait=not no_wait)
    if as_json:
        print_json(run_as_json(run))
    else:
        say(how_it_ended(run))
    return 0


def how_it_ended(run: Run) -> str:
    if run.state is not RunState.CLOSED:
        return f"run {run.run_id} is told to stop; it is {run.state}"
    reason = f" ({run.reason})" if run.reason else ""
    handed_on = processes_by_run().get(run.run_id)
    left = f"; processes {', '.join(map(str, handed_on))} that carry its id run on" if handed_on else ""
    return f"run {run.run_id} has ended: {run.outcome}{reason}{left}"
