"""Keep a pointer from a configuration to the state directory of its fleet, outside of both.

It tells where a fleet was started when the file says something else by now, and that there was a board when the state
directory is gone. It lies beside the configuration: ``.operations_center.toml.fleet``. A configuration in a git work
tree, which may be stashed or cleaned as a whole, or in a directory that cannot be written, has it in the user's state
directory instead: ``~/.local/state/operations_center/fleets/``.

It is a hint: an old one, or one that came with somebody's repository, says nothing until what it names was checked.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from operations_center.files import decode_json, read_file, write_atomically
from operations_center.places import name_for, user_state_home, work_tree_of

_LARGEST = 16 * 1024
_FLEETS = "fleets"


class Noted(NamedTuple):
    """``place`` is the file in which it stands that the state lies in ``state_dir`` (a real path)."""

    place: Path
    state_dir: Path


class _Pointer(msgspec.Struct, frozen=True):
    config_file: str
    state_dir: str


def write_pointer(config_file: Path, state_dir: Path, environ: Mapping[str, str]) -> None:
    """Note where the state of a configuration lies, in the first place that takes it; best effort.

    To be called when a ledger is made or a fleet is started, and not where an override names the state directory: what
    one shell says of it is not true for the next.
    """
    content = msgspec.json.encode(_Pointer(os.path.realpath(config_file), os.path.realpath(state_dir)))
    for place in _places(config_file, environ):
        with suppress(OSError):
            if place.parent.name == _FLEETS:
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _read(place) != content:
                write_atomically(place, content)
            return


def read_pointers(config_file: Path, environ: Mapping[str, str]) -> list[Noted]:
    """Return what this user has noted of a configuration; nothing of it was checked."""
    return [noted for place in _places(config_file, environ) if (noted := _understand(place, config_file)) is not None]


def _understand(place: Path, config_file: Path) -> Noted | None:
    try:
        pointer = decode_json(_read(place), _Pointer)
    except (OSError, ValueError):
        return None
    is_ours = pointer.config_file == os.path.realpath(config_file) and os.path.isabs(pointer.state_dir)
    return Noted(place, Path(pointer.state_dir)) if is_ours else None


def _read(place: Path) -> bytes:
    try:
        return read_file(place, _LARGEST, owner=os.geteuid())
    except FileNotFoundError:
        return b""


def _places(config_file: Path, environ: Mapping[str, str]) -> list[Path]:
    real = Path(os.path.realpath(config_file))
    beside = real.with_name(f".{real.name}.fleet")
    home = user_state_home(environ)
    if home is None:
        return [beside]
    apart = home / _FLEETS / f"{name_for(real)}.json"
    return [apart, beside] if work_tree_of(real.parent) is not None else [beside, apart]
