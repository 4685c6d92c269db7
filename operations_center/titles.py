"""What a process is called in ``ps``, ``top``, ``pgrep`` and ``pkill``: both its command line and its name.

An executor ends its own programs by a word of their command line (``pkill -f server``). So a title of ours has no word
that means anything elsewhere: no interpreter, path, role, or word of the configuration.
"""

import os
import re
from pathlib import Path

from setproctitle import setproctitle

from operations_center.files import read_file
from operations_center.text import on_one_line

SUPERVISOR = "oc-sup"
WATCHER = "oc-wtch"
WATCHDOG = "oc-wdog"
FORK_SERVER = "oc-fork"
PULL = "oc-pull"

OF_COMMAND = {"up": SUPERVISOR, "watch": WATCHER, "watchdog": WATCHDOG, "stage": PULL}
"""Of the commands that run for as long as the fleet does, or for minutes."""


_PREFIX = b"oc-"
_PROGRAM = re.compile(
    rb"(.*/)?operations-center|operations_center(\.\w+)*|.*run_module\(\"operations_center\".*", re.DOTALL
)
_WORDS = 6
"""Of a command line: an interpreter with its options, and what it runs."""
_LONGEST = 64 * 1024
_LONGEST_ENVIRONMENT = 2 * 1024 * 1024
_RUN_ID = re.compile(rb"(?:^|\0)OPERATIONS_CENTER_RUN_ID=(r[0-9]{1,18}-[0-9a-f]{6})\0")


def is_one_of_ours(pid: int) -> bool:
    """Whether a process is called as those of a fleet are, or runs one of our commands.

    A process of somebody else can take such a name for itself. It cannot give one to a stranger.
    """
    try:
        name = read_file(f"/proc/{pid}/comm", _LONGEST)
        line = read_file(f"/proc/{pid}/cmdline", _LONGEST_ENVIRONMENT)
    except OSError:
        return False
    # The title is taken between the two readings, or while the process executes another program and shows no words.
    if not line or line.startswith(_PREFIX):
        return True
    return name.startswith(_PREFIX) or any(map(_PROGRAM.fullmatch, line.split(b"\0")[:_WORDS]))


def described(pid: int | None) -> str:
    """Name a process that holds a lock, for a message: with the run that has started it, if one has."""
    if pid is None:
        return "another process"
    try:
        name = read_file(f"/proc/{pid}/comm", _LONGEST).decode(errors="replace").strip()
    except OSError:
        return f"process {pid}"
    run_id = _run_of(pid)
    return f"process {pid} ({on_one_line(name)}{f' of run {run_id}' if run_id else ''})"


def _run_of(pid: int) -> str | None:
    try:
        found = _RUN_ID.search(read_file(f"/proc/{pid}/environ", _LONGEST_ENVIRONMENT))
    except OSError:
        return None
    return found[1].decode() if found else None


def holding(pid: int | None, path: Path) -> str:
    """Say who holds a lock: one of ours already does what is to be done, anybody else has no business with it."""
    if pid is None or is_one_of_ours(pid):
        return f"{described(pid)} already runs it ({path})"
    run_id = _run_of(pid)
    how = f"`operations-center stop {run_id}`" if run_id else "`kill`"
    return f"{described(pid)} holds {path}, and is no process of a fleet; end it with {how}"


def take_title(title: str) -> None:
    # Else it writes over the environment that /proc shows, by which a fleet knows the processes of its runs.
    os.environ["SPT_NOENV"] = "1"
    setproctitle(title)
    del os.environ["SPT_NOENV"]
