"""``reconcile``: the one reconciliation, by hand."""

from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import DURATION, config_option, json_option, opened, print_json
from operations_center.cli.output import paint, say
from operations_center.errors import NotFound
from operations_center.in_flight_reconcile import (
    Asking,
    Report,
    Scope,
    Trigger,
    clear_orphaned_in_flight,
    find_orphaned_in_flight,
)
from operations_center.store import Access
from operations_center.wiring import Center

EXIT_FAILED = 1
EXIT_UNAVAILABLE = 75


@click.command("reconcile")
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--run", "run_id", metavar="RUN", help="Only this run.")
@click.option(
    "--min-age", type=DURATION, default=0, metavar="D", help="Leave jobs alone that were heard of since (0s)."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=25, show_default=True, help="Provider jobs to ask for, oldest first."
)
@config_option
@json_option
def command(
    dry_run: bool, run_id: str | None, min_age: int, limit: int, config_file: Path | None, as_json: bool
) -> int:
    """Find every run that is proven dead, free its slot, and settle, stop or hand over the others.

    Exit code 1 if an action failed, 75 if the board cannot be reached.
    """
    with opened(config_file, Access.READ if dry_run else Access.CREATE) as center:
        report = _reconcile(center, run_id, dry_run, Asking(by_person=True, min_age_ms=min_age, limit=limit))
    document = report.as_json()
    if as_json:
        print_json(document)
    else:
        _print(report, document)
    return _exit_code(document)


def _reconcile(center: Center, run_id: str | None, dry_run: bool, asking: Asking) -> Report:
    if run_id is not None and center.ledger.run(run_id) is None:
        raise NotFound(f"cannot reconcile run {run_id}: there is no such run; see `operations-center runs`")
    reconcile = find_orphaned_in_flight if dry_run else clear_orphaned_in_flight
    return reconcile(center.surroundings, trigger=Trigger.CLI, scope=Scope(run_id=run_id), asking=asking)


def _exit_code(document: dict[str, Any]) -> int:
    if document["skipped"] == "board_unreachable":
        return EXIT_UNAVAILABLE
    return EXIT_FAILED if any(action["action"] == "error" for action in document["actions"]) else 0


def _print(report: Report, document: dict[str, Any]) -> None:
    for action in document["actions"]:
        say(_line(action))
    for each in report.unsure:
        say(f"suspect  run {each.run_id}  what became of its job is not known: {each.said}")
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in document["verdicts"].items()) or "nothing is open"
    say(f"{document['scanned_count']} open runs looked at in {document['wall_ms']:.0f} ms: {verdicts}")
    if document["skipped"]:
        say(f"skipped: {document['skipped']}")
    for violation in document["invariant_violations"]:
        say(paint(f"promise broken: {violation}", fg="red"))


def _line(action: dict[str, Any]) -> str:
    subject = f"run {action['run_id']}" if action["run_id"] else f"task {action['task_id']}"
    proof = f"proof {action['proof']}: " if action["proof"] else ""
    outcome = f"; outcome {action['outcome']}" if action["outcome"] else ""
    said = f"; its provider says {action['said']}" if action["said"] else ""
    error = f"; {action['error']}" if action["error"] else ""
    return f"{action['action']}  {action['rule']}  {subject}  {proof}{action['reason']}{outcome}{said}{error}"
