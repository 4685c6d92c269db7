"""Copies of the configuration: what processes were started with stays as it was, whatever becomes of the file."""

import logging
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from operations_center.config import Config
from operations_center.errors import ConfigError
from operations_center.files import read_file, remove_tree, write_atomically
from operations_center.state_directory import StateDirectory

_log = logging.getLogger(__name__)

UNUSED_FOR_S = 3600.0
"""So old a copy must be to go: a younger one may belong to an ``up`` that has not told of it yet."""

LARGEST = 1024 * 1024
"""As large as a configuration may be."""


def keep_copy(file: Path, state: StateDirectory) -> str:
    """Copy a configuration to where no edit changes it; the copy's name. Raises OSError."""
    content = read_file(os.path.realpath(file), LARGEST)
    name = name_of(content)
    write_copy(state.config_copy(name), content)
    return name


def name_of(content: bytes) -> str:
    """Name a copy by what is in it."""
    import hashlib  # noqa: PLC0415 - a watcher has no use for it

    return f"{hashlib.sha256(content).hexdigest()[:16]}.toml"


def write_copy(copy: Path, content: bytes) -> None:
    """Also where a power cut has left an empty one. Raises OSError."""
    if _holds(copy, content):
        os.utime(copy, follow_symlinks=False)
    else:
        write_atomically(copy, content)


def _holds(copy: Path, content: bytes) -> bool:
    with suppress(OSError):
        return read_file(copy, len(content)) == content
    return False


class ConfigCopies:
    """Remember what is in the copies that processes are started with, and write again what somebody has removed."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._contents: dict[str, bytes] = {}

    def keep(self, names: Collection[str]) -> None:
        """Forget all others."""
        self._contents = {name: content for name, content in self._contents.items() if name in names}
        for name in names:
            copy = self._state.config_copy(name)
            try:
                if name not in self._contents:
                    self._contents[name] = read_file(copy, LARGEST)
                elif not _holds(copy, self._contents[name]):
                    write_copy(copy, self._contents[name])
            except OSError as error:
                _log.warning("cannot keep the copy %s of the configuration: %s", copy, error)


def refuse_to_move(running: Config, present: Config) -> None:
    """Raises ConfigError for a change that a fleet cannot take up while it runs."""
    changed = "center.state_dir has changed" if present.center.state_dir != running.center.state_dir else ""
    if running.code_pull is not None and present.code_pull is None:
        changed = "[code_pull] is gone"
    if changed:
        raise ConfigError([f"cannot use {present.file}: {changed}; stop the fleet, and start it again"])


def prune_config_copies(state: StateDirectory, in_use: Collection[str]) -> None:
    """Remove all others, unless they are young. Raises OSError."""
    before = time.time() - UNUSED_FOR_S
    for copy in state.configs.iterdir():
        if copy.name not in in_use and copy.lstat().st_mtime < before:
            remove_tree(copy)
