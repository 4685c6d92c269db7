"""From a file to a ``Config``, or to the list of all its mistakes."""

import errno
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from msgspec.structs import replace

from operations_center.config.backends import settings_of_kind, with_preset
from operations_center.config.checks import check_argv, check_backend_kind, check_board, check_ledger, check_roles
from operations_center.config.http_job import HttpJobSettings
from operations_center.config.http_job_checks import check_http_job
from operations_center.config.overrides import apply_override, read_overrides
from operations_center.config.reading import Reading
from operations_center.config.sections import (
    SECTIONS,
    Backend,
    Board,
    Center,
    CodePull,
    CommandSettings,
    Config,
    Role,
    Section,
    Watchdog,
    Web,
)
from operations_center.config.showing import secrets_of
from operations_center.config.wording import spell_nearest
from operations_center.errors import ConfigError
from operations_center.files import read_file
from operations_center.text import know_secrets, on_one_line

S = TypeVar("S", bound=Section)

_LARGEST_FILE = 1024 * 1024
_LINE = re.compile(r" \(at line (\d+), column \d+\)")
_MOST_PARTS = 64
"""Of a key with dots: the parser's work grows with the square of their number."""

_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
# Nothing is given back, and a word is looked at from its start only: so a long text costs no more than its length.
_LONG_KEY = re.compile(rf"{_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{_MOST_PARTS}}}")


def load_config(path: Path, environ: Mapping[str, str], copy: Path | None = None) -> Config:
    """The configuration in ``path`` with the overrides of ``environ``; ConfigError names all mistakes.

    ``copy``: read that in its place, as if it stood there.
    """
    file = _absolute(path)
    table = _parse(file, _read(copy or file))
    reading = Reading(file, environ.get("HOME"))
    _override(table, environ, reading)
    config = _convert(table, reading)
    if reading.lines:
        raise ConfigError(reading.lines)
    know_secrets(secrets_of(config, environ))
    return config


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError as error:
        _refuse(path, f"{error.strerror} (give its absolute path)")


def _read(file: Path) -> str:
    content = _read_bytes(file)
    if content.startswith(b"\xef\xbb\xbf"):
        _refuse(file, "line 1: it starts with a byte order mark (save it as UTF-8 without one)")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _refuse(file, f"line {line}: it is not UTF-8 (save it as UTF-8)")


def _read_bytes(file: Path) -> bytes:
    """A link is followed: whose it is, and whose what it leads to, is judged where the file is found."""
    try:
        return read_file(os.path.realpath(file), _LARGEST_FILE)
    except OSError as error:
        if error.errno == errno.EINVAL:
            _refuse(file, "it is not a regular file (name a file)")
        if error.errno == errno.EFBIG:
            _refuse(file, "it is larger than 1 MiB (name a configuration file)")
        _refuse(file, f"{error.strerror or error} (make it readable, or name another with --config)")
    except ValueError as error:
        _refuse(file, f"{error} (name another with --config)")


def _parse(file: Path, text: str) -> dict[str, Any]:
    if (key := _LONG_KEY.search(text)) is not None:
        begins = text.count("\n", 0, key.start()) + 1
        _refuse(file, f"line {begins}: it has a key of more than {_MOST_PARTS} parts (write fewer dots)")
    try:
        return tomllib.loads(text)
    except RecursionError:
        _refuse(file, "it is nested too deeply (write fewer brackets within brackets)")
    except ValueError as error:
        found = _LINE.search(str(error))
        line = found[1] if found else len(text.splitlines())
        problem = _LINE.sub("", str(error)).replace(" (at end of document)", " at the end of the file")
        _refuse(file, f"line {line}: it is not TOML: {problem} (correct that line)")


def _refuse(file: Path, problem: str) -> NoReturn:
    raise ConfigError([on_one_line(f"cannot use {file}: {problem}")]) from None


def _override(table: dict[str, Any], environ: Mapping[str, str], reading: Reading) -> None:
    overrides, bad = read_overrides(table, environ)
    for variable, problem in bad:
        reading.report_variable(variable, problem)
    for override in overrides:
        reading.note_override(override.key, override.variable)
        apply_override(table, override)


def _convert(table: dict[str, Any], reading: Reading) -> Config:
    for unknown in table:
        if unknown not in SECTIONS:
            reading.report((unknown,), f"unknown section ({spell_nearest(unknown, SECTIONS)})")
    backend_tables = reading.named_tables("backends", table.get("backends", {}))
    config = Config(
        file=reading.file,
        center=reading.section(Center, table.get("center", {}), ("center",)),
        board=reading.section(Board, table.get("board", {}), ("board",)),
        roles=_convert_roles(table, reading),
        backends=_convert_backends(backend_tables, reading),
        watchdog=reading.section(Watchdog, table.get("watchdog", {}), ("watchdog",)),
        code_pull=_convert_if_present(CodePull, "code_pull", table, reading),
        web=_convert_if_present(Web, "web", table, reading),
    )
    check_ledger(config.center, reading)
    check_board(config.board, reading)
    check_roles(config.roles, backend_tables, reading)
    return config


def _convert_roles(table: dict[str, Any], reading: Reading) -> dict[str, Role]:
    roles = {}
    for name, value in reading.named_tables("roles", table.get("roles", {})).items():
        role = reading.section(Role, value, ("roles", name))
        roles[name] = replace(role, name=name, task_kinds=role.task_kinds or (name,))
    return roles


def _convert_backends(tables: Mapping[str, Any], reading: Reading) -> dict[str, Backend]:
    backends = {}
    for name, table in tables.items():
        kind = settings_of_kind(table)
        value = with_preset(table, ("backends", name), reading) if kind is HttpJobSettings else table
        if value is None:
            continue  # without its preset nobody can say what else is missing
        backend = reading.section(kind, value, ("backends", name))
        check_backend_kind(name, backend.kind, reading)
        if isinstance(backend, HttpJobSettings):
            check_http_job(backend, name, reading)
        if isinstance(backend, CommandSettings):
            check_argv(name, backend.argv, reading)
        backends[name] = replace(backend, name=name)
    return backends


def _convert_if_present(kind: type[S], name: str, table: dict[str, Any], reading: Reading) -> S | None:
    return reading.section(kind, table[name], (name,)) if name in table else None
