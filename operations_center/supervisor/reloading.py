"""Roll out a changed configuration when it is asked for by SIGHUP, as ``systemctl reload`` and init systems do."""

import logging
import os
import subprocess

from operations_center.environment import kept_apart
from operations_center.files import append_to
from operations_center.identity import Process
from operations_center.releases.steps import last_words
from operations_center.state_directory import RELOAD
from operations_center.waiting import Waiting
from operations_center.wiring import Center

_log = logging.getLogger(__name__)


class Reloading:
    """Runs ``restart``, which checks the configuration first and interrupts no executor; one at a time."""

    def __init__(self, center: Center, waiting: Waiting) -> None:
        self._center = center
        self._waiting = waiting
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_again = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def ask(self) -> None:
        """A second one waits for the first: the file may have been changed in between."""
        if self._process is not None:
            self._asked_again = True
            return
        runtime = self._center.runtime(self._center.version.commit)
        try:
            with (
                append_to(self._center.state.log(RELOAD)) as log,
                kept_apart(runtime.environment(os.environ)) as (environment, variables),
            ):
                self._process = subprocess.Popen(
                    runtime.command("restart", "--config", str(self._center.config.file)),
                    env=environment,
                    pass_fds=(variables,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            _log.error("cannot reload: %s; try again", error.strerror or error)
            return
        _log.info("reload: the configuration is checked and rolled out")
        self._waiting.for_end_of(RELOAD, Process.of(self._process.pid))

    def bury(self) -> None:
        """The image that has replaced this one knows nothing of it, and reads nothing of its end."""
        assert self._process is not None
        code, self._process = self._process.wait(), None
        if code:
            _log.error("%s", self._complaint(code))
        if self._asked_again:
            self._asked_again = False
            self.ask()

    def _complaint(self, code: int) -> str:
        log = self._center.state.log(RELOAD)
        try:
            return last_words(log)
        except OSError:
            return f"cannot reload: it ended with exit code {code}, see {log}"
