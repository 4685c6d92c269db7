"""``explain RUN``: what is known of a run, and what reconciliation makes of it."""

from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.errors import NotFound
from operations_center.store import Access
from operations_center.views.explanation import explain


@click.command("explain")
@click.argument("run_id", metavar="RUN")
@config_option
@json_option
def command(run_id: str, config_file: Path | None, as_json: bool) -> int:
    """Show evidence, verdict and the exact change that `reconcile` would make; changes nothing."""
    with opened(config_file, Access.READ) as center:
        run = center.ledger.run(run_id)
        if run is None:
            raise NotFound(f"cannot explain run {run_id}: there is no such run; see `operations-center runs`")
        document = explain(center, run)
    if as_json:
        print_json(document)
    else:
        _print(document)
    return 0


def _print(document: dict[str, Any]) -> None:
    run = document["run"]
    say(f"run {run['run_id']} of task {run['task_id']}, {run['role']} on {run['backend']}: {run['state']}")
    for name, value in document["evidence"].items():
        say(f"  {name.replace('_', ' '):<17} {_in_words(value)}")
    if document["verdict"] is None:
        _print_closed(run)
        if document["evidence"]:
            say("processes that carry its id run on: it has handed work to a daemon, which has to end it")
        return
    say(f"verdict       {document['verdict']} (row {document['row']}): {document['reason']}")
    say(f"would do      {document['would_do']}")
    for action in document["actions"]:
        say(f"              {_change(action)}")
    say(f"would change  {document['would_change']}")


def _print_closed(run: dict[str, Any]) -> None:
    for name in ("outcome", "proof", "reason", "exit_code", "started_at", "settled_at", "closed_at"):
        say(f"  {name.replace('_', ' '):<11} {_in_words(run[name])}")


def _change(action: dict[str, Any]) -> str:
    words = [f"{action['deed']} by rule {action['rule']}"]
    words += [f"{name} {action[name]}" for name in ("outcome", "proof") if action[name]]
    return ", ".join(words) + (f": {action['outcome_reason']}" if action["outcome_reason"] else "")


def _in_words(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value)) or "none"
        case _:
            return str(value)
