"""``resolve RUN``: settle a run that only a person can judge."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.presentation import run_as_json
from operations_center.stopping.resolving import Resolution, resolve_run


def _not_blank(_context: click.Context, _parameter: click.Parameter, reason: str) -> str:
    if not reason.strip():
        raise click.BadParameter("say how you know")
    return reason


@click.command("resolve")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--as",
    "resolution",
    type=click.Choice([each.value for each in Resolution]),
    required=True,
    help="What became of it; `resubmit` submits it once more.",
)
@click.option(
    "--reason",
    required=True,
    callback=_not_blank,
    metavar="TEXT",
    help="Kept with the run, together with who you are.",
)
@config_option
@json_option
def command(run_id: str, resolution: str, reason: str, config_file: Path | None, as_json: bool) -> int:
    """Say what became of a run that nothing here can know, such as a submission without an answer.

    Its slot is freed, and its task goes on as after any run that ended so.
    """
    with opened(config_file) as center:
        run = resolve_run(center, run_id, Resolution(resolution), reason)
    if as_json:
        print_json(run_as_json(run))
    else:
        say(f"run {run.run_id} is resolved as {resolution}: its slot is free, its task {run.task_id} goes on")
    return 0
