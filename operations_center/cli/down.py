"""``down``: stop the fleet."""

import os
from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import (
    DURATION,
    config_of_running,
    config_option,
    json_option,
    print_json,
    refuse_to_stop,
)
from operations_center.cli.output import say
from operations_center.errors import UsageError
from operations_center.in_flight_reconcile import Executing
from operations_center.running import file_facts
from operations_center.stopping.ends import listed
from operations_center.stopping.fleet import Down, Ended, take_down
from operations_center.stopping.hindrances import named

PATIENCE = """Give up after this long (default 60s; with --now the longest grace and 10s for executors, if that is
more; --drain: never)."""


@click.command("down")
@click.option("--drain", is_flag=True, help="Admit nothing, wait for open runs, then stop.")
@click.option("--now", is_flag=True, help="End executors, too; their tasks become ready.")
@click.option("--timeout", type=DURATION, metavar="D", help=PATIENCE)
@config_option
@json_option
def command(drain: bool, now: bool, timeout: int | None, config_file: Path | None, as_json: bool) -> int:
    """Stop supervisor, watchers and watchdog.

    Executors run on and are adopted by the next `up`, unless one of the options says otherwise. Works without a
    supervisor, too; exit code 75 if something is left when the time is over. Jobs that --now cannot end from here are
    named, and not waited for.
    """
    if drain and now:
        raise UsageError("cannot run `operations-center down`: --drain and --now exclude each other; give one of them")
    how = Down.DRAIN if drain else Down.NOW if now else Down.LEAVE
    config = config_of_running(config_file)
    facts = file_facts(config, os.environ)
    if facts.state_dir is not None:
        say(f"the fleet runs in {config.center.state_dir}; {config.file} says {facts.state_dir}", err=True)
    refuse_to_stop(config)
    ended = take_down(config, how, None if timeout is None else timeout / 1000)
    if ended.unrecorded is not None:
        say(ended.unrecorded, err=True)
    if as_json:
        print_json(_as_json(ended))
    else:
        say(_in_words(ended))
    return 0


def _as_json(ended: Ended) -> dict[str, Any]:
    watchers = [{"role": member.name, "pid": member.pid} for member in ended.watchers]
    return {
        "stopped": {"supervisor": ended.supervisor.pid, "watchers": watchers},
        "runs_left": len(ended.runs_left) + len(ended.forgotten),
    }


def _in_words(ended: Ended) -> str:
    if ended.supervisor.process is not None:
        what = "stopped"
    elif ended.watchers:
        what = "stopped (there was no supervisor)"
    elif ended.forgotten_ended:
        what = f"no fleet was running; the state directory is gone; {', '.join(ended.forgotten_ended)} of it was ended"
    else:
        what = "no fleet was running" if ended.runs_left or ended.forgotten else "nothing was running"
    if ended.forgotten:
        pids = " ".join(str(pid) for pids in ended.forgotten.values() for pid in pids)
        return (
            f"{what}; the state directory is gone, and {', '.join(ended.forgotten)} of it runs on: bring the directory "
            f"back, or end what runs with `operations-center down --now` or `kill {pids}`"
        )
    if executing := _still_executing(ended.executing):
        return "; ".join([what, *executing])
    if ended.runs_left:
        left = f": {named(ended.hindered)}" if ended.hindered else ""
        return f"{what}; no executor runs; the next `up` settles what is left of {len(ended.runs_left)} run(s){left}"
    return f"{what}; no executor runs"


def _still_executing(executing: Executing) -> list[str]:
    kept, unkept = len(executing.kept), len(executing.unkept)
    adopted = "1 executor runs on and is" if kept == 1 else f"{kept} executors run on and are"
    alone = "1 executor runs on without its keeper" if unkept == 1 else f"{unkept} executors run on without keepers"
    return [
        *([f"{adopted} adopted by the next `up`"] if kept else []),
        *([f"{alone}; the next `up` or `down --now` ends what is left"] if unkept else []),
        *([f"whether {listed(executing.unknown)} still runs is unknown"] if executing.unknown else []),
    ]
