"""What the commands share: options, finding the configuration, and printing."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from operations_center.care.older import refuse_older_ledger
from operations_center.cli.output import fit, paint, say
from operations_center.config import Config, find_config, load_config, parse_duration, warning_of_named
from operations_center.config.discovery import VARIABLE
from operations_center.errors import OperationsCenterError
from operations_center.keeper.inspect import RUN_ID_VARIABLE
from operations_center.model import OPEN
from operations_center.releases.config_copies import keep_copy
from operations_center.running import config_of_fleet, file_facts, file_of_fleet
from operations_center.state_directory import StateDirectory
from operations_center.store import Access
from operations_center.wiring import Center, open_center

LONGEST_CELL = 80
"""Characters: a kind that somebody has made long must not push the other columns away."""

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command) -> Command:
    return click.option(
        "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="The configuration to use."
    )(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


class DurationType(click.ParamType[int]):
    """``"30s"`` → milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()


def read_config(config_file: Path | None, copy: Path | None = None) -> Config:
    """``copy`` is read in its place. Raises ConfigError."""
    return load_config(find_file(config_file), os.environ, copy)


def find_file(config_file: Path | None) -> Path:
    """Find the configuration, and warn of one that somebody else could have written. Raises ConfigError."""
    return _warn_of(find_config(config_file, os.environ, _working_directory()), config_file)


def config_of_running(config_file: Path | None) -> Config:
    """Read the configuration that the fleet runs, whatever the file says by now; the file's where no fleet runs.

    Raises ConfigError.
    """
    file = _warn_of(file_of_fleet(config_file, os.environ, _working_directory()), config_file)
    return config_of_fleet(file, os.environ)


def _warn_of(file: Path, config_file: Path | None) -> Path:
    if (config_file or os.environ.get(VARIABLE)) and (warning := warning_of_named(file)):
        say(warning, err=True)
    return file


def _working_directory() -> Path | None:
    """None where it was removed, as a worktree is."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


@contextmanager
def opened(config: Path | Config | None, access: Access = Access.CREATE, copy: Path | None = None) -> Iterator[Center]:
    """Ledger and board for one command; see ``open_center``, ``config_of_running`` and, for ``copy``, ``read_config``.

    ``config`` may have been read already. Raises ConfigError, OperationsCenterError.
    """
    if not isinstance(config, Config):
        config = config_of_running(config) if copy is None else read_config(config, copy)
    center = open_center(config, access)
    try:
        yield center
    finally:
        center.close()


def with_copy(center: Center) -> Center:
    """Have the heartbeat of this process name the configuration that it works with, so that a supervisor leaves it be.

    Raises OSError.
    """
    return replace(center, version=center.version._replace(config=copy_in_use(center).name))


def copy_in_use(center: Center) -> Path:
    """The copy of the configuration that the fleet runs; where none runs, one of the file. Raises OSError."""
    name = file_facts(center.config, os.environ).copy or keep_copy(center.config.file, center.state)
    return center.state.config_copy(name)


def refuse_to_start(center: Center, what: str) -> None:
    """Before a fleet or a part of it starts. Raises OperationsCenterError."""
    _refuse_inside_own_run(center, what)
    refuse_older_ledger(center.state.ledger, center.state.runs, lambda: center.ledger.counters()["fence"])


def _refuse_inside_own_run(center: Center, what: str) -> None:
    """What an executor starts belongs to its run and ends with it; a fleet must not."""
    run_id = os.environ.get(RUN_ID_VARIABLE)
    if run_id is not None and center.ledger.run(run_id) is not None:
        raise OperationsCenterError(
            f"cannot start {what}: this process belongs to run {run_id} of this very fleet and would end with it; "
            "start it from elsewhere"
        )


def refuse_to_stop(config: Config) -> None:
    """From inside a run of the fleet: one run must not end the others. Raises OperationsCenterError.

    Where the ledger cannot tell, nothing is refused.
    """
    run_id = os.environ.get(RUN_ID_VARIABLE)
    if run_id is None or not StateDirectory(config.center.state_dir).ledger.exists():
        return
    try:
        with opened(config, Access.READ) as center:
            run = center.ledger.run(run_id)
    except OperationsCenterError:
        return
    if run is not None and run.state in OPEN:
        raise OperationsCenterError(
            f"cannot stop the fleet: this process belongs to its run {run_id}, which is not to end the others; "
            "stop it from elsewhere"
        )


def print_json(document: Mapping[str, Any]) -> None:
    """One document on one line, with the schema's number."""
    # Beyond ASCII all is escaped; DEL is not.
    text = json.dumps({"schema": 1, **document}, separators=(", ", ": ")).replace("\x7f", "\\u007f")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns for people, as wide as their widest cell; what is longer than a cell may be has to stand in the last."""
    cells = [[*(_cell(value, LONGEST_CELL) for value in row[:-1]), _cell(row[-1], None)] for row in rows]
    widths = [max(len(heading), *(len(row[i]) for row in cells), 0) for i, heading in enumerate(headings)]
    say(paint("  ".join(h.ljust(w) for h, w in zip(headings, widths, strict=True)).rstrip(), bold=True))
    for row in cells:
        say("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any, width: int | None) -> str:
    return "-" if value is None else fit(str(value), width)
