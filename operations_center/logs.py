"""Where a process's words go: stderr in the foreground, a rotating file below a supervisor."""

import faulthandler
import logging
import os
import signal
import stat
import sys
import time
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from operations_center.files import append_to
from operations_center.patient_stream import PatientStream
from operations_center.text import hide_secrets, on_one_line, printable

LOG_BYTES = 10 * 1024 * 1024
LOGS_KEPT = 5

STACK_DUMP = signal.SIGUSR1
"""Sent to a process that hangs: it writes the stack of each of its threads into its log."""


class _Patient(logging.StreamHandler[PatientStream]):
    def close(self) -> None:
        self.stream.drain()
        super().close()


class _StderrFollows(RotatingFileHandler):
    """Tracebacks and stack dumps, which Python writes to descriptor 2, go into the present file as well."""

    def _open(self) -> TextIOWrapper:
        make_log_directory(Path(self.baseFilename))
        stream = TextIOWrapper(append_to(self.baseFilename), self.encoding, self.errors, write_through=True)
        os.dup2(stream.fileno(), sys.stderr.fileno())
        os.dup2(stream.fileno(), sys.stdout.fileno())
        return stream


class _Harmless(logging.Formatter):
    """One line for each record, whatever was put into it, and the lines of its traceback; without secrets."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return on_one_line(hide_secrets(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:
        return printable(hide_secrets(super().formatException(ei)), keep="\n\t")


def make_log_directory(log: Path) -> None:
    """Somebody may have removed it under a fleet; never what is above it. Raises OSError."""
    log.parent.mkdir(mode=0o700, exist_ok=True)


def log_to(file: Path | None, *, level: int = logging.INFO) -> None:
    """To a file with rotation, or to stderr. Where the file cannot be written only warnings are told, on stderr."""
    handler: logging.Handler | None = None
    obstacle = None
    if file is not None:
        try:
            handler = _StderrFollows(file, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8")
        except OSError as error:
            obstacle, level = error.strerror, logging.WARNING
    formatter = _Harmless("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = handler or _to_stderr()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    faulthandler.enable()
    faulthandler.register(STACK_DUMP, all_threads=True)
    if obstacle is not None:
        logging.warning("cannot write the log %s: %s; goes on without it, correct that and restart", file, obstacle)


def drain_logs() -> None:
    """Wait a moment for what is logged to be read, before this process runs another program."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Patient):
            handler.stream.drain()


def _to_stderr() -> logging.Handler:
    """No reader may hold up a process of the fleet. A file has none."""
    descriptor = sys.stderr.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return logging.StreamHandler()
    try:
        return _Patient(PatientStream(descriptor))
    except RuntimeError:
        # No thread is to be had (ulimit -u). To be held up by a reader is better than not to start.
        return logging.StreamHandler()
