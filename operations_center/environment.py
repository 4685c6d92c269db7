"""Keep the variables of a long-lived process in its memory, and out of where other programs may read them.

``/proc/PID/environ`` shows the block of memory in which a program was given its variables, to every process of the
same user: an executor would read there what was meant for another backend. So a process that stays overwrites that
block (``clear_block``); ``os.environ`` has copies, also in all that is forked from it. A program of ours that it
executes is given only ``visible`` variables in a block of its own; the others come as a file in memory (``kept_apart``)
whose number one variable names, and are taken over (``take_over``) before anything else is done.

What has to stay readable: by ``OPERATIONS_CENTER_…`` the processes of runs and of stages are found.
"""

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from operations_center.files import read_file

HANDED_ON = "OPERATIONS_CENTER_ENVIRONMENT_FD"

# Given as text to an interpreter that runs another release, which need not know of it.
TAKE_OVER = f"""
import json, os
handed_on = {{}}
if os.environ.get("{HANDED_ON}", "").isdigit():
    with open(int(os.environ.pop("{HANDED_ON}")), "rb") as file:
        file.seek(0)
        handed_on = json.load(file)
    os.environ.update(handed_on)
"""

HAND_ON = f"""
def hand_on():
    kept = {{name: os.environ.pop(name) for name in handed_on if name in os.environ}}
    if kept:
        descriptor = os.memfd_create("oc-environment", 0)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(json.dumps(kept).encode())
        os.environ["{HANDED_ON}"] = str(descriptor)
"""

LARGEST_CREDENTIAL = 64 * 1024

_VISIBLE = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR"),
    }
)
_VISIBLE_PREFIXES = ("LC_", "LD_", "PYTHON", "XDG_", "OPERATIONS_CENTER_")

_ENV_START, _ENV_END = 50, 51
"""Fields of ``/proc/PID/stat`` (proc(5))."""


def is_visible(name: str) -> bool:
    """Whether a variable is what any program of the user may know, and needed to start one or to find it."""
    return name in _VISIBLE or name.startswith(_VISIBLE_PREFIXES)


def visible(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if is_visible(name)}


def value_of(name: str, environment: Mapping[str, str]) -> str | None:
    """A variable, or else the systemd credential of that name (systemd.exec(5), LoadCredential); None for neither."""
    if name in environment:
        return environment[name]
    directory = environment.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        return None
    try:
        return read_file(Path(directory, name), LARGEST_CREDENTIAL).decode().rstrip("\n")
    except (OSError, ValueError):
        return None


def clear_block() -> None:
    """Leave only visible variables where other processes may read ours. What is executed later starts afresh."""
    # Loaded here: most commands end at once.
    libc = ctypes.PyDLL(None)
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = (int(fields[number - 3]) for number in (_ENV_START, _ENV_END))
    if not begin < end:
        return
    kept = [entry for entry in ctypes.string_at(begin, end - begin).split(b"\0") if _is_visible_entry(entry)]
    # The C library's own list leads into the block.
    variables = dict(os.environ)
    libc.clearenv()
    for name, value in variables.items():
        os.environ[name] = value
    ctypes.memmove(begin, b"".join(entry + b"\0" for entry in kept).ljust(end - begin, b"\0"), end - begin)


def _is_visible_entry(entry: bytes) -> bool:
    return is_visible(os.fsdecode(entry.partition(b"=")[0]))


def take_over() -> None:
    """Take the variables that the process which has executed this one has handed on."""
    number = os.environ.pop(HANDED_ON, "")
    if number.isdigit():
        with open(int(number), "rb") as file:
            file.seek(0)
            os.environ.update(json.load(file))


@contextmanager
def kept_apart(environment: Mapping[str, str]) -> Iterator[tuple[dict[str, str], int]]:
    """The variables to execute a program of ours with, and the descriptor that it has to inherit."""
    hidden = {name: value for name, value in environment.items() if not is_visible(name)}
    descriptor = os.memfd_create("oc-environment", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(json.dumps(hidden).encode())
        yield {**visible(environment), HANDED_ON: str(descriptor)}, descriptor
    finally:
        os.close(descriptor)
