"""Find places outside of a git work tree, which an agent may clean, stash or commit as a whole."""

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

from operations_center.ownership import why_untrusted

OURS = "operations_center"

_UNUSUAL = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 40


def work_tree_of(directory: Path) -> Path | None:
    """Return the git work tree that a directory lies in, by what is there; the directory itself need not be."""
    real = Path(os.path.realpath(directory))
    return next((parent for parent in (real, *real.parents) if os.path.lexists(parent / ".git")), None)


def user_state_home(environ: Mapping[str, str]) -> Path | None:
    """Return our directory in $XDG_STATE_HOME (default ``~/.local/state``); None where this user has no home.

    A home of somebody else, as root may have inherited it, is none.
    """
    named, home = environ.get("XDG_STATE_HOME", ""), environ.get("HOME") or _home_of_user()
    place = Path(named) if os.path.isabs(named) else Path(home, ".local", "state")
    return place / OURS if place.is_absolute() and not _is_foreign(place) else None


def state_directory_outside(directory: Path, environ: Mapping[str, str]) -> Path | None:
    """Return a place outside of a work tree for the state of a fleet; None where there is no tree, or no such place."""
    tree, home = work_tree_of(directory), user_state_home(environ)
    if tree is None or home is None or work_tree_of(home) is not None:
        return None
    return home / name_for(directory)


def name_for(path: Path) -> str:
    """Return a name for a path: the last part of it, for people, and a hash of all of it."""
    import hashlib  # noqa: PLC0415 - a watcher has no use for it

    real = os.path.realpath(path)
    word = _UNUSUAL.sub("-", os.path.basename(real)).strip("-")[:_LONGEST_NAME] or "root"
    return f"{word}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:12]}"


def _is_foreign(place: Path) -> bool:
    """Return whether somebody else could exchange a directory, which may be yet to be made."""
    try:
        return why_untrusted(next(path for path in (place, *place.parents) if path.exists())) is not None
    except OSError:
        return True


def _home_of_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""
