"""Signals that tell who sent them: signalfd(2), which Python does not offer.

A handler learns the number only. Where a signal is blocked instead and read from a descriptor, the kernel adds the
sender's pid and user as they were when it was sent.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Collection, Iterator
from enum import Enum
from typing import NamedTuple

RE_EXECUTE = signal.SIGUSR2
"""Asks the supervisor to become what is installed now."""

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, RE_EXECUTE})
"""What a process of the fleet is told by signals."""

SI_USER = 0
SI_TKILL = -6
SI_KERNEL = 0x80
"""``si_code`` of what the kernel sent by itself: a terminal's Ctrl-C, or its end (sigaction(2))."""

_KERNEL_NAMES_SENDER = frozenset({SI_USER, SI_TKILL})
"""What kill(2), tgkill(2) and pidfd_send_signal(2) send. With any other code the sender has filled in pid and user by
itself (rt_sigqueueinfo(2)), or nobody has (F_SETSIG of fcntl(2))."""

_SIZE_OF_SET = 128
_SIZE_OF_INFO = 128
_FIELDS = struct.Struct("=IiiII")
"""The beginning of ``struct signalfd_siginfo``: signo, errno, code, pid, uid."""

_libc = ctypes.CDLL(None, use_errno=True)


class Sent(NamedTuple):
    """A signal, and who sent it: ``pid`` and ``uid`` count only where ``is_sender_known``.

    ``pid`` is 0 for the kernel, and for a process outside of this pid namespace.
    """

    number: int
    code: int
    pid: int
    uid: int

    @property
    def is_sender_known(self) -> bool:
        return self.code in _KERNEL_NAMES_SENDER

    @property
    def is_from_outside(self) -> bool:
        return self.code == SI_KERNEL or (self.is_sender_known and self.pid == 0)


class Standing(Enum):
    """What a sender is to the process that it has signalled."""

    OWNER = "it may stop the fleet for good: a terminal, init, what started the process, `down`"
    STRANGER = "it is no process of a run"
    RUN = "it is a process of a run"
    UNKNOWN = "it may have been a process of a run"


REFUSED = frozenset({Standing.RUN, Standing.UNKNOWN})
"""Who may stop nothing by a signal."""


class SignalQueue:
    """Blocks some signals in the calling thread, and in all that it starts from now on, and keeps them for ``take``."""

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        wanted = ctypes.create_string_buffer(_SIZE_OF_SET)
        _libc.sigemptyset(wanted)
        for number in numbers:
            _libc.sigaddset(wanted, int(number))
        # Its two flags are those of open(2).
        self._descriptor: int = _libc.signalfd(-1, wanted, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def fileno(self) -> int:
        return self._descriptor

    def take(self) -> Iterator[Sent]:
        """Those that have come since."""
        while True:
            try:
                info = os.read(self._descriptor, _SIZE_OF_INFO)
            except BlockingIOError:
                return
            number, _, code, pid, uid = _FIELDS.unpack_from(info)
            yield Sent(number, code, pid, uid)

    def close(self) -> None:
        """The signals stay blocked: what comes now must not change how this process ends."""
        os.close(self._descriptor)
