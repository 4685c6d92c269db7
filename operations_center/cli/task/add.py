"""``task add TITLE``."""

from pathlib import Path
from typing import Any

import click

from operations_center.boards.local import NewTask
from operations_center.bounds import LARGEST_BODY
from operations_center.cli.common import config_of_running, config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.cli.task.fields import (
    PRIORITIES,
    check_fields,
    default_kind,
    stdin_bytes,
    warn_of_kinds,
)
from operations_center.config import Config
from operations_center.errors import NotFound, OperationsCenterError, UsageError
from operations_center.model import Priority
from operations_center.presentation import task_as_json


@click.command("add")
@click.argument("title")
@click.option("--kind", help="Which role takes it (default: the first role's first kind).")
@click.option("--body", help="The rest of the prompt.")
@click.option("--body-file", metavar="FILE|-", help="Read the body from a file, or from stdin.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option("--backend", help="Run it through this backend instead of its role's.")
@config_option
@json_option
def add(
    title: str,
    kind: str | None,
    body: str | None,
    body_file: str | None,
    priority: str,
    backend: str | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Add a task to the local board and print its id."""
    if body is not None and body_file is not None:
        raise UsageError("cannot add the task: give --body or --body-file, not both")
    config = config_of_running(config_file)
    new = new_task(
        {
            "title": title,
            "kind": default_kind(config) if kind is None else kind,
            "body": read_body(body_file) if body_file is not None else body or "",
            "priority": priority,
            "backend": backend,
        },
        config,
    )
    with opened(config) as center:
        (task_id,) = center.board.add([new])
        center.wake_everybody()
        warn_of_kinds([new.kind], config)
        if not as_json:
            say(task_id)
            return
        task = center.board.task(task_id)
        assert task is not None
        print_json(task_as_json(task))


def new_task(fields: dict[str, Any], config: Config) -> NewTask:
    """Raises OperationsCenterError, NotFound for a backend."""
    try:
        check_fields(fields, config)
    except ValueError as error:
        kind = NotFound if fields["backend"] not in (None, *config.backends) else OperationsCenterError
        raise kind(f"cannot add the task: {error}") from None
    return NewTask(**fields | {"priority": Priority(fields["priority"])})


def read_body(file: str) -> str:
    """A file's text, or stdin's for ``-``. Raises OperationsCenterError."""
    try:
        if file == "-":
            content = stdin_bytes().read(4 * LARGEST_BODY + 1)
        else:
            with open(file, "rb") as opened_file:
                content = opened_file.read(4 * LARGEST_BODY + 1)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        problem = "it is not UTF-8; save it as UTF-8"
    except (OSError, ValueError) as error:
        problem = f"{getattr(error, 'strerror', None) or error}; name a file that can be read"
    raise OperationsCenterError(f"cannot read the body {file}: {problem}")
