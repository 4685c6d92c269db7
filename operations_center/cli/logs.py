"""``logs ROLE|RUN``: a watcher's or an executor's output."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.log_output import Harmless, Plain, Raw, at_once, whole_lines
from operations_center.cli.tail import Piece, Tail, follow, last_lines
from operations_center.errors import NotFound
from operations_center.model import RunState
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from operations_center.store import Access
from operations_center.wiring import Center

OWN_LOGS = {"watchdog": WATCHDOG, "supervisor": SUPERVISOR}


@click.command("logs")
@click.argument("name", metavar="ROLE|RUN")
@click.option(
    "-f", "--follow", "following", is_flag=True, help="Go on with output as it comes, until the run is closed."
)
@click.option("-n", "count", type=click.IntRange(0), default=100, show_default=True, help="Lines of each stream.")
@click.option("--raw", is_flag=True, help="Also to a terminal the bytes as they are.")
@config_option
@json_option
def command(name: str, following: bool, count: int, raw: bool, config_file: Path | None, as_json: bool) -> None:
    """Print the last output of a role's watcher, of `watchdog` or `supervisor`, or of a run.

    Of a run both streams are shown, with `[stderr]` before the lines of the second; -f ends when it is closed. A
    terminal is given text and colours only: other escape sequences are shown as text.
    """
    with opened(config_file, Access.READ) as center:
        tails, is_over = _sources(center, name)
        pieces = follow(tails, count, is_over) if following else last_lines(tails, count)
        if not as_json:
            _print(pieces, raw)
        elif following:
            for document in at_once(pieces):
                print_json(document)
        else:
            print_json({"lines": list(whole_lines(pieces))})


def _print(pieces: Iterator[tuple[str, Piece]], raw: bool) -> None:
    harmless = sys.stdout.isatty() and not raw
    plain = Plain(sys.stdout.buffer, _harmless if harmless else Raw)
    try:
        for stream, piece in pieces:
            plain.show(stream, piece)
    finally:
        if harmless:
            plain.end()


def _harmless() -> Harmless:
    return Harmless(colours="NO_COLOR" not in os.environ)


def _sources(center: Center, name: str) -> tuple[list[Tail], Callable[[], bool]]:
    """Where the output lies, and the question whether more can come. Raises NotFound."""
    if name in center.config.roles:
        return [Tail("log", center.state.log(name))], lambda: False
    if name in OWN_LOGS:
        return [Tail("log", center.state.log(OWN_LOGS[name]))], lambda: False
    if center.ledger.run(name) is None:
        known = ", ".join([*center.config.roles, *OWN_LOGS])
        raise NotFound(f"cannot show the logs of {name}: it is no run, and no role; roles are {known}")
    directory = center.state.run(name)
    return [Tail(stream, directory / stream) for stream in ("stdout", "stderr")], partial(_is_closed, center, name)


def _is_closed(center: Center, run_id: str) -> bool:
    run = center.ledger.run(run_id)
    return run is None or run.state is RunState.CLOSED
