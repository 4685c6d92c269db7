"""The kinds of backends: which keys each has, and the presets of providers."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from operations_center.config.http_job import HttpJobSettings
from operations_center.config.reading import Reading
from operations_center.config.sections import Backend, CommandSettings
from operations_center.config.wording import Key, spell_nearest, spell_value

PRESETS = Path(__file__).parents[1] / "providers" / "presets"

BACKEND_KINDS: dict[str, type[Backend]] = {"command": CommandSettings, "http_job": HttpJobSettings}


def settings_of_kind(table: Any) -> type[Backend]:
    """The settings that a backend's table is read as; a table that does not say its kind is a command's."""
    kind = table.get("kind") if isinstance(table, dict) else None
    return BACKEND_KINDS.get(kind, CommandSettings) if isinstance(kind, str) else CommandSettings


def with_preset(table: Mapping[str, Any], key: Key, reading: Reading) -> Mapping[str, Any] | None:
    """The table with what its preset says where it says nothing itself; None for a preset that there is not."""
    name = table.get("preset")
    if not isinstance(name, str):
        return table
    known = {path.stem: path for path in PRESETS.glob("*.toml")}
    if name not in known:
        reading.report((*key, "preset"), f"there is no preset {spell_value(name)} ({spell_nearest(name, known)})")
        return None
    return _merged(tomllib.loads(known[name].read_text(encoding="utf-8")), table)


def _merged(preset: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**preset, **own}
    for key, value in own.items():
        # What is submitted is one thing: a preset's would be a guess at what else a model takes.
        if key != "json" and isinstance(value, dict) and isinstance(preset.get(key), dict):
            merged[key] = _merged(preset[key], value)
    return merged
