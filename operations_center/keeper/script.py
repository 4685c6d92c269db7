"""Run a shell script of ours so that its command line shows nothing of it.

Every user of the machine may read command lines, and ``pkill -f`` matches against them. So a script is a sealed file in
memory, with its words quoted ahead of its text. The shell finds it as a file with the name of its descriptor in
``/proc/self/fd``, and its whole command line is ``oc 2 keeper``.
"""

import errno
import fcntl
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

SHELL = "/bin/sh"

_WHERE = "/proc/self/fd"
_STDERR = 2
_SIXTH = 6
_OWN_TITLE = {"dash": (), "bash": ("--posix",)}
"""Shells that may be called by another name than ``sh``, and the option with which they then behave as one. One program
that is many, as busybox is, tells by its name which of them it is to be."""

_MFD_NOEXEC_SEAL = 0x8
"""Linux 6.3; some machines allow no other file in memory (``vm.memfd_noexec``)."""

_WORD_LIMIT = 32 * os.sysconf("SC_PAGE_SIZE")
"""MAX_ARG_STRLEN of the kernel: no program can be given a longer one."""


@dataclass(frozen=True, slots=True)
class Script:
    """A text of ours. ``name`` is what its process is called and the last word of its command line."""

    name: str
    text: str


def start_script(
    script: Script,
    words: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    environment: Mapping[str, str],
    before: Callable[[], None] = lambda: None,
    inherited: Collection[int] = (),
    sixth: int | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a script in a session of its own; it finds its words as ``$1``, ``$2``, … and its own text on stderr.

    ``before`` is called in the child before it becomes the shell: it takes no lock. Raises OSError, and ValueError for
    a NUL in a word.

    ``sixth`` is a descriptor that it finds as number 6: a shell knows numbers of one digit only.
    """

    def prepare_child() -> None:
        _reset_signals()
        if sixth is not None:
            os.dup2(sixth, _SIXTH)
        before()

    text = _in_memory(script, words)
    # What is inherited has to be open here as well, whatever it is.
    open_here = [] if sixth is None else [fcntl.fcntl(sixth, fcntl.F_DUPFD_CLOEXEC, _SIXTH)]
    try:
        return subprocess.Popen(
            _command_line(script.name),
            executable=SHELL,
            stdin=stdin,
            stdout=stdout,
            stderr=text,
            env=environment,
            cwd=_WHERE,
            start_new_session=True,
            pass_fds=(*inherited, *(() if sixth is None else (_SIXTH,))),
            preexec_fn=prepare_child,  # noqa: PLW1509 - takes no lock
        )
    finally:
        for descriptor in (*open_here, text):
            os.close(descriptor)


def _command_line(name: str) -> list[str]:
    shell = os.path.basename(os.path.realpath(SHELL))
    title = "oc" if shell in _OWN_TITLE else "sh"
    return [title, *_OWN_TITLE.get(shell, ()), str(_STDERR), name]


def _in_memory(script: Script, words: Sequence[str]) -> int:
    for word in words:
        _refuse_impossible(word)
    descriptor = _make_file(f"oc-{script.name}")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(os.fsencode(f"set -- {shlex.join(words)}\n{script.text}"))
        # Other programs of the same user may open it: nobody changes what a keeper is still reading.
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make_file(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def _refuse_impossible(word: str) -> None:
    if "\0" in word:
        raise ValueError("embedded null byte")
    if len(os.fsencode(word)) >= _WORD_LIMIT:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), f"{word[:40]}…")


def _reset_signals() -> None:
    # A shell cannot trap what was ignored when it started, and a mask survives exec.
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
