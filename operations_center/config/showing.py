"""The configuration as it counts: every key with its default, in the words of the file."""

from enum import Enum
from pathlib import Path
from typing import Any

from operations_center.config.sections import Config, Section
from operations_center.config.structure import keys_of
from operations_center.text import hide_secrets
from operations_center.units import format_duration, format_size


def merged(config: Config) -> dict[str, Any]:
    """All sections as plain values that JSON can hold; what is not set is None, a URL's user is hidden."""
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


def _show_number(attribute: str, value: Any) -> Any:
    if value is not None and attribute.endswith("_ms"):
        return format_duration(value)
    if value is not None and attribute.endswith("_bytes"):
        return format_size(value)
    return _show(value)


def _show(value: Any) -> Any:
    match value:
        case Section():
            return _show_section(value)
        case Path() | Enum():
            return str(value)
        case tuple() | list():
            return [_show(item) for item in value]
        case dict():
            return {key: _show(item) for key, item in value.items()}
        case str():
            return hide_secrets(value)
        case _:
            return value
