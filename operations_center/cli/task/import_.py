"""``task import FILE.jsonl``: many tasks at once, all or none."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from operations_center.boards.local import NewTask
from operations_center.bounds import LARGEST_BODY
from operations_center.cli.common import config_of_running, config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.cli.task.fields import check_fields, default_kind, stdin_bytes, warn_of_kinds
from operations_center.config import Config
from operations_center.config.wording import spell_nearest
from operations_center.errors import OperationsCenterError
from operations_center.model import Priority
from operations_center.presentation import task_as_json

KEYS = ("title", "kind", "body", "priority", "backend")
LARGEST_LINE = 2 * LARGEST_BODY


@click.command("import")
@click.argument("file", metavar="FILE.jsonl|-")
@config_option
@json_option
def import_(file: str, config_file: Path | None, as_json: bool) -> None:
    """Add one task for each line, a JSON object: title is required; kind, body, priority and backend may be there.

    Either all lines are added or, if one is wrong, none. Prints the ids in the order of the lines.
    """
    config = config_of_running(config_file)
    # Before the ledger is opened: the file that is named could be the ledger's own.
    new = list(read_tasks(file, config))
    with opened(config) as center:
        ids = center.board.add(new)
        center.wake_everybody()
        warn_of_kinds((task.kind for task in new), config)
        if as_json:
            added = [center.board.task(task_id) for task_id in ids]
            print_json({"tasks": [task_as_json(task) for task in added if task is not None]})
        else:
            for task_id in ids:
                say(task_id)


def read_tasks(file: str, config: Config) -> Iterator[NewTask]:
    """Raises OperationsCenterError that names file and line."""
    with _open(file) as stream:
        for number, line in _lines(stream):
            try:
                yield _task(line, config)
            except ValueError as error:
                raise OperationsCenterError(f"cannot import {file}:{number}: {error}") from None


@contextmanager
def _open(file: str) -> Iterator[BinaryIO]:
    try:
        if file == "-":
            yield stdin_bytes()
        else:
            with open(file, "rb") as stream:
                yield stream
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise OperationsCenterError(
            f"cannot import {file}: {problem}; name a file with one JSON object per line"
        ) from None


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1, without blank ones; a line that is too long comes cut, so that it is refused."""
    number = 0
    while line := stream.readline(LARGEST_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def _task(line: bytes, config: Config) -> NewTask:
    if len(line) > LARGEST_LINE:
        raise ValueError(f"the line is longer than {LARGEST_LINE} bytes; shorten it")
    given = {key: value for key, value in _parse(line).items() if value is not None}
    for key in given:
        if key not in KEYS:
            raise ValueError(f'unknown key "{key[:60]}" ({spell_nearest(key[:60], KEYS)})')
    if "title" not in given:
        raise ValueError("its title is missing; give one")
    fields = {"kind": default_kind(config), "priority": "normal", **given}
    check_fields(fields, config)
    return NewTask(**fields | {"priority": Priority(fields["priority"])})


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8; save the file as UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply; give an object of strings") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at column {error.colno}; correct the line") from None
    if not isinstance(value, dict):
        raise ValueError('it is not an object; write {"title": "…"}')
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'it has the key "{twice[:60]}" twice; keep one')
    return found
