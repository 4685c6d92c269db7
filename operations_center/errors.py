"""Every error that the program reports, and the exit code that each stands for.

    OperationsCenterError           1   failed
    ├── UsageError                  2   wrong words on the command line
    ├── NotFound                    4   no such run, task, role, backend
    ├── LedgerUnusable              1   damaged, lost, not ours, or where others may write: only a person can help
    ├── LedgerUnwritable            1   its file system is full, over its quota or read-only; it was not changed
    ├── Unavailable                75   try again later
    │   ├── Unrecorded                  a run was ended, and that could not be recorded
    │   ├── LockHeld                    somebody else holds a lock
    │   ├── LedgerBusy                  no write transaction within the time allowed
    │   │   └── LedgerHeld                  for a program that has no business with it holds its lock
    │   ├── LedgerReplaced              its file was removed or replaced while this process had it open
    │   └── BoardUnreachable            the board did not answer
    └── ConfigError                78   one line for each mistake in the configuration

Each message starts with ``cannot``, names the thing and says what to do about it.
"""

from collections.abc import Sequence

from operations_center.text import hide_secrets, on_one_line


class OperationsCenterError(Exception):
    """Base of all reported errors; ``str(error)`` is the one line that a person reads, without secrets."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(on_one_line(hide_secrets(message)))


class UsageError(OperationsCenterError):
    exit_code = 2


class NotFound(OperationsCenterError):
    exit_code = 4


class LedgerUnusable(OperationsCenterError):
    pass


class LedgerUnwritable(OperationsCenterError):
    """``obstacle`` says why in words, without the ledger's name."""

    def __init__(self, path: object, obstacle: str) -> None:
        super().__init__(f"cannot write the ledger {path}: {obstacle}")
        self.obstacle = obstacle


class Unavailable(OperationsCenterError):
    exit_code = 75


class Unrecorded(Unavailable):
    pass


class LockHeld(Unavailable):
    pass


class LedgerBusy(Unavailable):
    pass


class LedgerHeld(LedgerBusy):
    """``obstacle`` says by whom, in words."""

    def __init__(self, path: object, obstacle: str) -> None:
        super().__init__(f"cannot write the ledger {path}: {obstacle}")
        self.obstacle = obstacle


class LedgerReplaced(Unavailable):
    pass


class BoardUnreachable(Unavailable):
    pass


class ConfigError(OperationsCenterError):
    """All mistakes of a configuration at once, one line each."""

    exit_code = 78

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(on_one_line(hide_secrets(line)) for line in lines)
        Exception.__init__(self, "\n".join(self.lines))
