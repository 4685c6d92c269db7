"""Environment variables that take the place of a key: ``OPERATIONS_CENTER_<SECTION>__<KEY>``.

``__`` stands for the dot between section, name and key. Case does not matter, and ``_`` also stands for the
``-`` and ``.`` of a name. Names without ``__`` are not ours to judge: executors are given such variables.
"""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from operations_center.config.backends import settings_of_kind
from operations_center.config.sections import NAMED_SECTIONS, SECTIONS, Section
from operations_center.config.structure import keys_of, nested_section
from operations_center.config.wording import Key, spell_key, spell_nearest

PREFIX = "OPERATIONS_CENTER_"


class Override(NamedTuple):
    variable: str
    key: Key
    value: Any


class BadOverride(NamedTuple):
    variable: str
    problem: str


def read_overrides(table: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[list[Override], list[BadOverride]]:
    """The overrides of keys that ``table`` may have, outer keys first, and the variables that fit none."""
    found: list[Override] = []
    bad: list[BadOverride] = []
    variables = sorted(name for name in environ if _is_override(name))
    # Each watcher reads the configuration at its start, and most have none.
    keys = _keys_by_variable(table) if variables else {}
    for variable in variables:
        matching = keys.get(variable.upper(), [])
        if not matching:
            bad.append(BadOverride(variable, f"there is no such key ({spell_nearest(variable, keys)})"))
        elif len(matching) > 1:
            names = " and ".join(spell_key(key) for key in matching)
            bad.append(BadOverride(variable, f"it stands for {names} (change the key in the file)"))
        elif not _is_utf8(environ[variable]):
            bad.append(BadOverride(variable, "it is not UTF-8 (give text)"))
        else:
            found.append(Override(variable, matching[0], _parse_value(environ[variable])))
    return found, bad


def apply_override(table: dict[str, Any], override: Override) -> None:
    *tables, last = override.key
    inner: Any = table
    for part in tables:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            return  # the file has something else there, which is reported as that
    inner[last] = override.value


def overrides_in_force(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that take the place of a key, for a process that is to read the configuration as we do."""
    return {name: value for name, value in environ.items() if _is_override(name)}


def value_of_override(key: Key, environ: Mapping[str, str]) -> str | None:
    """Return what the environment says in the place of a key, as it stands there."""
    wanted = _variable_of(key)
    return next((value for name, value in environ.items() if name.upper() == wanted), None)


def _is_override(variable: str) -> bool:
    return variable.upper().startswith(PREFIX) and "__" in variable[len(PREFIX) :]


def _keys_by_variable(table: Mapping[str, Any]) -> dict[str, list[Key]]:
    keys: dict[str, list[Key]] = {}
    for key in _all_keys(table):
        keys.setdefault(_variable_of(key), []).append(key)
    return keys


def _variable_of(key: Key) -> str:
    return PREFIX + "__".join(part.replace("-", "_").replace(".", "_") for part in key).upper()


def _all_keys(table: Mapping[str, Any]) -> Iterator[Key]:
    for section, kind in SECTIONS.items():
        if section not in NAMED_SECTIONS:
            yield from _keys_below(kind, (section,))
        elif isinstance(named := table.get(section), dict):
            for name, value in named.items():
                own = settings_of_kind(value) if section == "backends" else kind
                yield from _keys_below(own, (section, name))


def _keys_below(kind: type[Section], above: Key) -> Iterator[Key]:
    for key, field in keys_of(kind).items():
        yield (*above, key)
        if nested := nested_section(field):
            yield from _keys_below(nested, (*above, key))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text
