"""Copies of the configuration: what processes were started with stays as it was, whatever becomes of the file."""

import hashlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from operations_center.state_directory import StateDirectory

UNUSED_FOR_S = 3600.0
"""So old a copy must be to go: a younger one may belong to an ``up`` that has not told of it yet."""


def keep_copy(file: Path, state: StateDirectory) -> str:
    """Copy a configuration to where no edit changes it; the copy's name. Raises OSError."""
    content = file.read_bytes()
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.toml"
    write_copy(state.config_copy(name), content)
    return name


def write_copy(copy: Path, content: bytes) -> None:
    """Also where a power cut has left an empty one. Raises OSError."""
    if copy.exists() and copy.read_bytes() == content:
        os.utime(copy)
        return
    draft = copy.with_name(f".{copy.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(copy)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def prune_config_copies(state: StateDirectory, in_use: Collection[str]) -> None:
    """Remove all others, unless they are young. Raises OSError."""
    before = time.time() - UNUSED_FOR_S
    for copy in state.configs.iterdir():
        if copy.name not in in_use and copy.stat().st_mtime < before:
            copy.unlink()
