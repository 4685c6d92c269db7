"""``status``: the state of everything at a glance."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import (
    config_of_running,
    config_option,
    json_option,
    opened,
    print_json,
    print_table,
)
from operations_center.cli.output import Painted, paint, say
from operations_center.cli.releases import rollout_in_words, shortened
from operations_center.errors import LedgerUnusable
from operations_center.running import difference_in_words
from operations_center.store import Access
from operations_center.views.status import Seen, describe, read_members, read_status

EXIT_NOT_RUNNING = 3
COLOURS = {
    "up": "green",
    "ready": "green",
    "degraded": "yellow",
    "starting": "yellow",
    "backoff": "yellow",
    "failed": "red",
    "stopped": "red",
}


@click.command("status")
@config_option
@json_option
def command(config_file: Path | None, as_json: bool) -> int:
    """Show the fleet, its backends, the board and the last reconciliations.

    Exit code 0 when it is up or degraded, 3 when it is stopped, 1 when the ledger is lost or damaged.
    """
    seen = _read(config_file)
    document = describe(seen)
    if as_json:
        print_json(document)
    else:
        _print(document, difference_in_words(seen.config, seen.file))
    if document["ledger_error"]:
        raise LedgerUnusable(document["ledger_error"])
    return EXIT_NOT_RUNNING if document["state"] == "stopped" else 0


def _read(config_file: Path | None) -> Seen:
    try:
        with opened(config_file, Access.READ) as center:
            return read_status(center)
    except LedgerUnusable as error:
        # Who lives, and what state they are in, is wanted most of all then.
        return replace(read_members(config_of_running(config_file)), ledger_error=str(error))


def _print(document: dict[str, Any], difference: str | None) -> None:
    supervisor, watchdog = document["supervisor"], document["watchdog"]
    since = f" since {supervisor['started_at']}" if supervisor and supervisor["started_at"] else ""
    who = f"supervisor {supervisor['pid']}{since}" if supervisor else "no supervisor"
    say(_painted(document["state"]), f"  {who}  {document['config_file']}")
    for problem in document["problems"]:
        say("  ", _painted("!", "yellow"), f" {problem}")
    if difference and difference not in document["problems"]:
        say(f"  {difference}")
    say()
    _print_deployment(document["deployment"], supervisor)
    release = " release" if document["deployment"] else ""
    _print_table(f"role pid state restarts heartbeat_at progress_at{release}", document["watchers"])
    say(
        f"watchdog {'-' if watchdog['pid'] is None else watchdog['pid']} ",
        _painted(watchdog["state"]),
        _last_cycle(watchdog),
        f", release {shortened(watchdog['release']) or '-'}" if release else "",
    )
    say()
    backends = document["backends"]
    left_alone = any(each["cooldown_until"] or each["breaker"] != "closed" for each in backends)
    health = " breaker cooldown_until" if left_alone else ""
    _print_table(f"name held max_concurrent{health} pause_reason", backends)
    if document["runs"]:
        say()
        _print_table("run_id task_id role backend state started_at", document["runs"])
    _print_footer(document)


def _last_cycle(watchdog: dict[str, Any]) -> str:
    """Of one that does not live, and has left no report, nothing is known."""
    if watchdog["last_cycle_at"] is not None:
        return f", last cycle {watchdog['last_cycle_at']}"
    return "" if watchdog["pid"] is None else ", no cycle yet"


def _print_deployment(deployment: dict[str, Any] | None, supervisor: dict[str, Any] | None) -> None:
    if deployment is None:
        return
    say(f"release {deployment['release'] or '- (the code that up was started with)'}")
    if deployment["step"]:
        say(f"  {rollout_in_words(deployment['release'], deployment['target'], deployment['step'])}")
        if supervisor:
            say(f"  the supervisor itself runs {shortened(supervisor['release']) or 'the installed code'}")
    if deployment["bad"]:
        say(f"  {deployment['bad']['commit']} is bad: {deployment['bad']['reason']}")
    if deployment["pull_problem"]:
        say("  ", _painted("!", "yellow"), f" {deployment['pull_problem']}")
    say()


def _print_footer(document: dict[str, Any]) -> None:
    if document["ledger_error"]:
        return
    counts = ", ".join(f"{count} {state}" for state, count in document["board"]["tasks"].items() if count)
    outbox = document["board"]["outbox"]
    say()
    say(f"tasks: {counts or 'none'}" + (f"; {outbox} to be told to the board" if outbox else ""))
    for trigger, report in document["reconcile"].items():
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in report["verdicts"].items()) or "nothing open"
        skipped = f", skipped: {report['skipped']}" if report["skipped"] else ""
        say(f"reconciled by {trigger} at {report['at']} in {report['wall_ms']:.0f} ms: {verdicts}{skipped}")


def _print_table(columns: str, rows: Sequence[dict[str, Any]]) -> None:
    names = columns.split()
    headings = [name.replace("_id", "").replace("_at", "").replace("_", " ").upper() for name in names]
    print_table(
        headings, [[shortened(row[name]) if name == "release" else row[name] for name in names] for row in rows]
    )


def _painted(word: str, colour: str | None = None) -> Painted:
    return paint(word, fg=colour or COLOURS.get(word), bold=True)
