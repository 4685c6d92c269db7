"""The configuration as it counts: every key with its default, in the words of the file."""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

from operations_center.config.sections import CommandSettings, Config, Section
from operations_center.config.structure import keys_of
from operations_center.text import HIDDEN, hide_secrets, is_secret_name, secrets_in
from operations_center.units import format_duration, format_size

HARMLESS_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})

_OPTION = re.compile(r"--?[\w-]*")


def merged(config: Config) -> dict[str, Any]:
    """All sections as plain values that JSON can hold; what is not set is None, what is secret by its place ``***``."""
    return {
        "center": _show_section(config.center),
        "board": _show_section(config.board),
        "roles": {name: _show_section(role) for name, role in config.roles.items()},
        "backends": {name: _show_section(backend) for name, backend in config.backends.items()},
        "watchdog": _show_section(config.watchdog),
        "code_pull": _show(config.code_pull),
        "web": _show(config.web),
    }


def _show_section(section: Section) -> dict[str, Any]:
    return {
        key: _show_number(field.name, getattr(section, field.name)) for key, field in keys_of(type(section)).items()
    }


def secrets_of(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """Find the secrets that stand in the configuration itself, and those in variables that it or a proxy names."""
    for section in (*config.backends.values(), config.board, config.code_pull):
        yield from _secrets_below("", section)
    for backend in config.backends.values():
        for name in backend.env if isinstance(backend, CommandSettings) else ():
            if is_secret_name(name):
                yield environ.get(name, "")
    for name, value in environ.items():
        if name.lower().endswith("_proxy"):
            yield from secrets_in(value)


def _secrets_below(name: str, value: Any) -> Iterator[str]:
    match value:
        case Section():
            for key in keys_of(type(value)).values():
                yield from _secrets_below(key.name, getattr(value, key.name))
        case dict():
            for key, item in value.items():
                yield from [item] if _is_secret(name, key, item) else _secrets_below(key, item)
        case tuple() | list():
            for before, item in pairwise(("", *value)):
                yield from [item] if _follows_option(before, item) else _secrets_below("", item)
        case str():
            yield from secrets_in(value)


def _is_secret(table: str, key: str, value: Any) -> bool:
    """Whether a literal in a table of headers, or of what is sent as JSON, is secret by its name."""
    if not isinstance(value, str) or "{" in value:
        return False
    return key.lower() not in HARMLESS_HEADERS if table == "headers" else is_secret_name(key)


def _follows_option(before: Any, value: Any) -> bool:
    """Whether a word of a command is the value of an option such as ``--token``."""
    is_option = isinstance(before, str) and _OPTION.fullmatch(before) is not None and is_secret_name(before)
    return is_option and isinstance(value, str) and "{" not in value


def _show_number(attribute: str, value: Any) -> Any:
    if value is not None and attribute.endswith("_ms"):
        return format_duration(value)
    if value is not None and attribute.endswith("_bytes"):
        return format_size(value)
    return _show(value, attribute)


def _show(value: Any, name: str = "") -> Any:
    """``name``: what the value is called by its table."""
    match value:
        case Section():
            return _show_section(value)
        case Path() | Enum():
            return str(value)
        case tuple() | list():
            pairs = pairwise(("", *value))
            return [HIDDEN if _follows_option(before, item) else _show(item) for before, item in pairs]
        case dict():
            return {key: HIDDEN if _is_secret(name, key, item) else _show(item, key) for key, item in value.items()}
        case str():
            return hide_secrets(value)
        case _:
            return value
