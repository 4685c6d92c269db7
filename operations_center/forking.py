"""A fork server: a process that has imported the program, and forks watchers from it.

A forked watcher runs its first instruction in about 2 ms, where a new interpreter with our imports needs more than
100, and it shares the memory of what was imported. All watchers of one fork server run the same code, whatever
happens meanwhile to the files that it was imported from.

The supervisor asks over a socket. When that is closed the server ends; what it has forked goes on. It opens no
ledger, takes no lock and has no thread, so what it forks inherits nothing. A child that has ended stays a zombie
until the supervisor says ``Reap``: so its pid cannot become a stranger's, and its exit code can be read.
"""

import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Never, Self

import msgspec

from operations_center.files import open_own_file
from operations_center.identity import Process
from operations_center.logs import make_log_directory
from operations_center.pidfds import open_pidfd
from operations_center.sharing import prepare_to_share
from operations_center.signals import SIGNALS
from operations_center.state_directory import FORK_SERVER

LONGEST_MESSAGE = 64 * 1024

END_WITHIN_S = 2.0
"""A fork server that is told to end and does not is stuck, and is killed."""

_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
"""So that a write fails with an error instead (docs.python.org/3/library/signal.html)."""


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Fork the watcher of a role, or the watchdog, with its output at the end of the file ``log``.

    ``release`` is its commit, ``config_copy`` what it reads in place of the configuration; empty: nothing.
    The two ends may be of different releases: new fields have a default.
    """

    name: str
    config_file: str
    log: str
    release: str | None = None
    config_copy: str = ""


class Reap(msgspec.Struct, frozen=True, tag=True):
    pid: int


class Forked(msgspec.Struct, frozen=True):
    """The answer to a ``Fork``; ``process`` is None, and ``error`` says why, where there was none to be had.

    With the name of the fork server itself: it is there, and answers from now on.
    """

    name: str
    process: Process | None = None
    error: str = ""


_requests = msgspec.json.Decoder(Fork | Reap)
_answers = msgspec.json.Decoder(Forked)


class ForkServer:
    """The supervisor's end. Asking never waits: ``fileno`` becomes readable when there are answers."""

    def __init__(self, process: Process, control: socket.socket) -> None:
        self.process = process
        self._control = control

    @classmethod
    def start(cls, live: Callable[[socket.socket], Never], log: Path) -> Self:
        """Fork it, with its output at the end of a file, or where ours goes if that cannot be written.

        ``live`` is its life, and has nothing open but its socket.

        Raises OSError when the machine has no process to give.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        prepare_to_share()
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                _begin(live, theirs, log)
        ours.setblocking(False)
        return cls(Process.of(pid), ours)

    def fileno(self) -> int:
        return self._control.fileno()

    def ask(self, request: Fork | Reap) -> None:
        """A server that is gone or stuck does not answer; that its process ends, or an answer is late, tells so."""
        try:
            self._control.send(msgspec.json.encode(request))
        except OSError:
            return

    def answers(self) -> list[Forked]:
        """Those that have come since."""
        found = []
        try:
            while message := self._control.recv(LONGEST_MESSAGE):
                found.append(_answers.decode(message))
        except OSError:
            pass
        return found

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)

    def end(self) -> int:
        """Let it answer what it was asked, then end; its exit code. The last answers can still be taken."""
        self._control.shutdown(socket.SHUT_WR)
        pidfd = open_pidfd(self.process)
        if pidfd is not None:
            if not select.select([pidfd], [], [], END_WITHIN_S)[0]:
                self.kill()
            os.close(pidfd)
        _, status = os.waitpid(self.process.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        self._control.close()


def serve(control: socket.socket) -> Fork | None:
    """Fork for each request until the supervisor is gone: None then. In a forked process: what it is to be."""
    prepare_to_share()
    _answer(control, Forked(FORK_SERVER, Process.current()))
    while message := _receive(control):
        request: Fork | Reap = _requests.decode(message)
        if isinstance(request, Reap):
            _reap(request.pid)
            continue
        try:
            pid = os.fork()
        except OSError as error:
            _answer(control, Forked(request.name, error=error.strerror or str(error)))
            continue
        if pid == 0:
            return request
        _answer(control, Forked(request.name, Process.of(pid)))
    return None


def _begin(live: Callable[[socket.socket], Never], control: socket.socket, log: Path) -> Never:
    try:
        os.setsid()
        _take_streams(log)
        # The supervisor's lock, if it has one, must not live on in us.
        os.closerange(3, control.fileno())
        os.closerange(control.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _take_default_signals()
        live(control)
    except BaseException:
        traceback.print_exc()
    finally:
        # Whatever went wrong: this is not the process whose stack we are on.
        os._exit(1)


def _take_default_signals() -> None:
    """What was ignored or blocked where the supervisor was started would stay so in all that is forked from here.

    What tells a fleet to stop is blocked: a fork server ends with its socket only, and what it forks asks for the
    sender of what has come (``waiting``).
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, SIGNALS)


def _take_streams(log: Path) -> None:
    _take(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        make_log_directory(log)
        opened = open_own_file(log, os.O_WRONLY | os.O_APPEND)
    except OSError:
        # The supervisor's own streams are left: a watcher without a log is better than none.
        return
    _take(opened, 1, 2)


def _take(opened: int, *descriptors: int) -> None:
    for descriptor in descriptors:
        os.dup2(opened, descriptor)


def _receive(control: socket.socket) -> bytes:
    try:
        return control.recv(LONGEST_MESSAGE)
    except ConnectionError:
        return b""


def _answer(control: socket.socket, answer: Forked) -> None:
    try:
        control.send(msgspec.json.encode(answer))
    except ConnectionError:
        # The next receive finds that the supervisor is gone.
        return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
