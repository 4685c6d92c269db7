"""``events``: the log of everything that happened."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.clock import SystemClock, from_rfc3339, rfc3339
from operations_center.config import parse_duration
from operations_center.errors import NotFound
from operations_center.model import Event
from operations_center.presentation import event_as_json
from operations_center.store import Access
from operations_center.wiring import Center

LOOK_EVERY_S = 0.2
LONGEST_VALUE = 60
LONGEST_REASON = 300

_LEFT_OUT = frozenset({"run_id", "task_id", "holder", "number", "origin", "finish", "updated_at", "created_at", "at"})
"""Columns that explain nothing to a person."""

_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class MomentType(click.ParamType[int]):
    """An RFC 3339 time, or a duration that means "ago" → wall-clock milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return SystemClock().now().wall - parse_duration(value)
        except ValueError:
            pass
        try:
            return from_rfc3339(value)
        except (ValueError, OverflowError):
            self.fail(
                f"{value[:40]!r} is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 5m", param, ctx
            )


MOMENT = MomentType()


@click.command("events")
@click.option("--run", "run_id", metavar="RUN", help="Only events of this run.")
@click.option("--since", type=MOMENT, metavar="T", help="Only events from this time, or from so long ago.")
@click.option("-f", "--follow", is_flag=True, help="Go on with events as they happen.")
@config_option
@json_option
def command(run_id: str | None, since: int | None, follow: bool, config_file: Path | None, as_json: bool) -> None:
    """Print the event log, oldest first."""
    with opened(config_file, Access.READ) as center:
        if run_id is not None:
            _refuse_unknown(center, run_id)
        if as_json and not follow:
            found = center.ledger.events(run_id=run_id, since=since)
            print_json({"events": [event_as_json(event) for event in found]})
            return
        for event in _followed(center, run_id, since) if follow else center.ledger.events(run_id=run_id, since=since):
            if as_json:
                print_json(event_as_json(event))
            else:
                say(_line(event))


def _refuse_unknown(center: Center, run_id: str) -> None:
    if center.ledger.run(run_id) is None and next(center.ledger.events(run_id=run_id), None) is None:
        raise NotFound(f"cannot show the events of run {run_id}: there is no such run; see `operations-center runs`")


def _followed(center: Center, run_id: str | None, since: int | None) -> Iterator[Event]:
    seen = 0
    while True:
        last = center.ledger.last_event()
        if last > seen:
            for event in center.ledger.events(run_id=run_id, since=since, after=seen):
                yield event
                last = max(last, event.seq)
            seen = last
        time.sleep(LOOK_EVERY_S)


def _line(event: Event) -> str:
    subject = " ".join(part for part in (event.run_id, event.task_id) if part)
    words = [rfc3339(event.at) or "", f"{event.kind:<20}", subject, *_explained(event.data)]
    return " ".join(word for word in words if word).rstrip()


def _explained(data: dict[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _explained(value)
        elif value not in (None, "") and name not in _LEFT_OUT and not name.endswith(("_mono", "_ticks")):
            yield f"{name}={_shown(name, value)}"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, int) and name.endswith(("_at", "not_before", "since")):
        return rfc3339(value) or ""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if _COMMIT.fullmatch(text):
        return text[:12]
    longest = LONGEST_REASON if name == "reason" else LONGEST_VALUE
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f'"{short}"' if " " in short else short
