"""From a table of the file to a section, value by value, so that one pass meets every mistake."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import FieldInfo

from operations_center.config.sections import Name, Section
from operations_center.config.structure import advice, describe, keys_of, nested_section
from operations_center.config.wording import Key, spell_key, spell_nearest, spell_value
from operations_center.text import SHORTEST_SECRET, on_one_line
from operations_center.units import parse_duration, parse_size

S = TypeVar("S", bound=Section)

_HOLDS_SECRETS = re.compile(r"_env\Z|\.env(\[\d+\])?\Z|\.headers(\.|\Z)")
_ITEM = re.compile(r"`\$\[(\d+)\]")


class Reading:
    """Collects the mistakes of one file in ``lines``.

    What a mistake leaves open is filled with the key's default, or with None: only checks see such a section,
    and ``is_right`` tells them what not to judge.
    """

    def __init__(self, file: Path, home: str | None) -> None:
        self.file = file
        self.lines: list[str] = []
        self._home = home
        self._wrong: set[Key] = set()
        self._variables: dict[Key, str] = {}

    def report(self, key: Key, problem: str) -> None:
        self._wrong.add(key)
        self.lines.append(on_one_line(f"cannot use {self.file}: {self._spell(key)}: {problem}"))

    def report_variable(self, variable: str, problem: str) -> None:
        self.lines.append(on_one_line(f"cannot use the environment variable {variable}: {problem}"))

    def note_override(self, key: Key, variable: str) -> None:
        self._variables[key] = variable

    def is_right(self, key: Key) -> bool:
        return not any(key[:length] in self._wrong for length in range(1, len(key) + 1))

    def section(self, kind: type[S], value: Any, key: Key) -> S:
        known = keys_of(kind)
        if not isinstance(value, dict):
            self.report(key, f"got {spell_value(value)} (give a table with keys of its own)")
            return kind(**{field.name: self._default(field) for field in known.values()})
        for unknown in value:
            if unknown not in known:
                self.report((*key, unknown), f"unknown key ({spell_nearest(unknown, known)})")
        return kind(**{field.name: self._attribute(field, value, (*key, name)) for name, field in known.items()})

    def named_tables(self, section: str, value: Any) -> dict[str, Any]:
        """The tables of a section such as ``[roles.goal]`` by name, still to be converted."""
        if not isinstance(value, dict):
            self.report((section,), f"got {spell_value(value)} (write [{section}.NAME] and its keys below)")
            return {}
        for name in value:
            self._check_name(section, name)
        return value

    def _check_name(self, section: str, name: str) -> None:
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError:
            self.report((section, name), f"{spell_value(name)} is not a name ({describe(Name)})")

    def _attribute(self, field: FieldInfo, table: Mapping[str, Any], key: Key) -> Any:
        if key[-1] not in table:
            if field.required:
                self.report(key, f"it is missing ({advice(field)})")
            return self._default(field)
        if nested := nested_section(field):
            return self.section(nested, table[key[-1]], key)
        return self._value(field, table[key[-1]], key)

    def _default(self, field: FieldInfo) -> Any:
        if field.required:
            return None
        return self._absolute(field.default) if isinstance(field.default, Path) else field.default

    def _value(self, field: FieldInfo, value: Any, key: Key) -> Any:
        try:
            return msgspec.convert(_count(field, value), type=field.type, dec_hook=self._convert_path)
        except msgspec.ValidationError as error:
            self._report_value(field, value, key, _ITEM.search(str(error)))
        except ValueError as error:
            self.report(key, str(error))
        return self._default(field)

    def _report_value(self, field: FieldInfo, value: Any, key: Key, item: re.Match[str] | None) -> None:
        self._wrong.add(key)
        if item:
            key, value = (*key[:-1], f"{key[-1]}[{item[1]}]"), value[int(item[1])]
        # A person may have written the secret itself where the name of its variable belongs.
        hidden = _HOLDS_SECRETS.search(".".join(key)) and isinstance(value, str) and len(value) >= SHORTEST_SECRET
        self.report(key, f"got {'a string' if hidden else spell_value(value)} ({advice(field)})")

    def _convert_path(self, kind: type, value: Any) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"not a {kind.__name__}")
        if self._home and (value == "~" or value.startswith("~/")):
            return Path(self._home, value[2:])
        return self._absolute(Path(value))

    def _absolute(self, path: Path) -> Path:
        return self.file.parent / path

    def _spell(self, key: Key) -> str:
        for length in range(len(key), 0, -1):
            if variable := self._variables.get(key[:length]):
                return f"{spell_key(key)} (set by ${variable})"
        return spell_key(key)


def _count(field: FieldInfo, value: Any) -> Any:
    """The number that a duration or size stands for; other values as they are."""
    if field.name.endswith("_ms"):
        return parse_duration(_as_text(value))
    if field.name.endswith("_bytes") and isinstance(value, str):
        return parse_size(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise msgspec.ValidationError("not a finite number")
    return value


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise msgspec.ValidationError("not a string")
    return value
