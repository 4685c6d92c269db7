"""``config check`` and ``config show``."""

import json
from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import config_option, json_option, print_json, read_config
from operations_center.cli.output import say
from operations_center.config import Config, hints, merged
from operations_center.errors import ConfigError


@click.group("config")
def command() -> None:
    """Check or show the configuration."""


@command.command("check")
@config_option
@click.option("--copy", type=click.Path(path_type=Path), hidden=True, help="Read this in its place.")
@json_option
def check(config_file: Path | None, copy: Path | None, as_json: bool) -> None:
    """Name every mistake; exit code 78 if there is one."""
    try:
        config = read_config(config_file, copy)
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, "config_file": None, "errors": list(error.lines), "notes": []})
        raise
    notes = _notes(config)
    if as_json:
        print_json({"ok": True, "config_file": str(config.file), "errors": [], "notes": notes})
    else:
        say(f"{config.file} has no mistake")
    for note in notes:
        say(f"note: {note}", err=True)


@command.command("show")
@config_option
@json_option
def show(config_file: Path | None, as_json: bool) -> None:
    """Print the configuration as it counts: with defaults and overrides, without secrets."""
    config = read_config(config_file)
    if as_json:
        print_json({"config_file": str(config.file), **merged(config)})
        return
    say(f"# {config.file}")
    for line in _as_toml((), merged(config)):
        say(line)


def _notes(config: Config) -> list[str]:
    inactive = (
        f"[{name}] is inactive: this version checks it and does not act on it" for name in config.inactive_sections
    )
    return [*inactive, *(f"{hint.about}: {hint.text}" for hint in hints(config))]


def _as_toml(key: tuple[str, ...], table: dict[str, Any]) -> list[str]:
    tables = {name: value for name, value in table.items() if isinstance(value, dict) and _is_section((*key, name))}
    values = {name: value for name, value in table.items() if value is not None and name not in tables}
    heading = ["", f"[{'.'.join(map(_toml_key, key))}]"] if values else []
    lines = [*heading, *(f"{name} = {_toml_value(value)}" for name, value in values.items())]
    for name, value in tables.items():
        lines += _as_toml((*key, name), value)
    return lines


def _is_section(key: tuple[str, ...]) -> bool:
    return len(key) <= (2 if key[0] in ("roles", "backends") else 1)


def _toml_key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _toml_value(value: Any) -> str:
    match value:
        case dict():
            pairs = (f"{name} = {_toml_value(inner)}" for name, inner in value.items() if inner is not None)
            return f"{{ {', '.join(pairs)} }}"
        case list():
            return f"[{', '.join(map(_toml_value, value))}]"
        case str():
            # TOML's strings are JSON's, but for DEL and for the way in which characters beyond 16 bits are escaped.
            text = json.dumps(value, ensure_ascii=False)
            return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)
        case _:
            return json.dumps(value)
