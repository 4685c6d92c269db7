"""A fork server: a process that has imported the program, and forks watchers from it.

A forked watcher runs its first instruction in about 2 ms, where a new interpreter with our imports needs more than
100, and it shares the memory of what was imported. All watchers of one fork server run the same code, whatever
happens meanwhile to the files that it was imported from.

The supervisor asks over a socket. When that is closed the server ends; what it has forked goes on. It opens no
ledger, takes no lock and has no thread, so what it forks inherits nothing. A child that has ended stays a zombie
until the supervisor says ``Reap``: so its pid cannot become a stranger's, and its exit code can be read.
"""

import gc
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
from setproctitle import setproctitle

from operations_center.identity import Process, read_exit_code

LONGEST_MESSAGE = 64 * 1024

END_WITHIN_S = 2.0
"""A fork server that is told to end and does not is stuck, and is killed."""


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Fork a process that runs one command line of ours, with its output at the end of the file ``log``."""

    name: str
    arguments: tuple[str, ...]
    log: str


class Reap(msgspec.Struct, frozen=True, tag=True):
    pid: int


class Forked(msgspec.Struct, frozen=True):
    """The answer to a ``Fork``; ``process`` is None, and ``error`` says why, where there was none to be had."""

    name: str
    process: Process | None = None
    error: str = ""


_requests = msgspec.json.Decoder(Fork | Reap)
_answers = msgspec.json.Decoder(Forked)


class ForkServer:
    """The supervisor's end. Asking never waits: ``fileno`` becomes readable when there are answers."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """``command`` gets ``--control N`` appended. Raises OSError when the machine has no process to give."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        try:
            with theirs, log.open("ab") as output:
                self._popen = subprocess.Popen(
                    [*command, "--control", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(theirs.fileno(),),
                )
        except OSError:
            self._control.close()
            raise
        self.process = Process.of(self._popen.pid)

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

    def exit_code_of(self, process: Process) -> int | None:
        """Of a child that has ended (negative: by that signal), which is reaped then; None if it was not ours."""
        code = read_exit_code(process)
        self.ask(Reap(process.pid))
        return code

    def kill(self) -> None:
        self._popen.kill()

    def end(self) -> int:
        """Let it answer what it was asked, then end; its exit code. The last answers can still be taken."""
        self._control.shutdown(socket.SHUT_WR)
        try:
            return self._popen.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()

    def close(self) -> None:
        self._control.close()


def serve(control: socket.socket) -> Fork | None:
    """Fork for each request until the supervisor is gone: None then. In a forked process: what it is to run."""
    # What was imported stays shared: a collection in a child would write to it, and so copy it.
    gc.collect()
    gc.freeze()
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


def become(request: Fork) -> None:
    """Turn a forked process into one of its own: session, name, output."""
    os.setsid()
    setproctitle(" ".join(["operations-center", *request.arguments]))
    log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


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
