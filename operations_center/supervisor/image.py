"""The program that the supervisor's process runs, exchanged for another one in this same process."""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from operations_center.errors import Unavailable
from operations_center.releases.runtime import CHANGED, Runtime
from operations_center.waiting import SIGNALS

INSTALLED_CODE = "installed"
"""In the place of a commit: the code that ``up`` was started with."""

CHECK_WITHIN_S = 10.0
"""An image that takes longer to say that it can start is not changed to."""

_NO_PROCESS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

HANGS_MS = 25_000
CERTAIN_MS = 5_000
"""A loop on trial that does not turn for the first, and then not for the second either, hangs."""

# Given as text, so that no release brings its own: whether the next image raises or hangs, this process goes on as
# before. A process that was stopped is told once that its time is up, however long ago that was, and has the second
# time to turn its loop.
_LAUNCH = """
import json, os, runpy, signal, sys, time, traceback
before = json.loads(sys.argv.pop(1))
me, told_at = os.getpid(), None
def go_on_as_before(reason):
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        os.set_inheritable(before["lock"], True)
    except (OSError, TypeError):
        pass
    for name, value in before["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.execv(before["argv"][0], [*before["argv"], "--handed-back", reason])
def too_late(*_):
    global told_at
    last, told_at = told_at, time.monotonic()
    if os.getpid() == me and last is not None and told_at - last < 2 * before["certain_s"]:
        traceback.print_stack()
        go_on_as_before("its supervisor does not turn its loop")
signal.signal(signal.SIGALRM, too_late)
signal.setitimer(signal.ITIMER_REAL, before["hangs_s"], before["certain_s"])
class Heard:
    said = ""
    def write(self, text):
        if isinstance(text, str) and text.strip():
            Heard.said = ": " + text.strip().splitlines()[-1][:300]
        return stderr.write(text)
    def __getattr__(self, name):
        return getattr(stderr, name)
stderr, sys.stderr = sys.stderr, Heard()
try:
    runpy.run_module("operations_center", run_name="__main__", alter_sys=True)
    reason = ""
except SystemExit as end:
    # Without a lock to hand on, 75 says that somebody else has it.
    if "OPERATIONS_CENTER_SUPERVISOR_ENDS" in os.environ or (end.code == 75 and before["lock"] is None):
        raise
    reason = f"its supervisor ended with exit code {end.code}{Heard.said}"
except BaseException as error:
    traceback.print_exc()
    reason = f"its supervisor ended: {type(error).__name__}: {error}"
go_on_as_before(reason)
"""


def end_for_good() -> None:
    """This image is about to end because that is its task now, and not because it cannot go on."""
    os.environ["OPERATIONS_CENTER_SUPERVISOR_ENDS"] = "1"
    _set_timer(0)


def loop_turned(*, on_trial: bool) -> None:
    """To be said with each turn of its loop by an image that was executed; not on trial, it is trusted from then on."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        _set_timer(HANGS_MS if on_trial else 0)


def _set_timer(milliseconds: int) -> None:
    signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000, CERTAIN_MS / 1000 if milliseconds else 0)


def why_not_start(runtime: Runtime, config_file: Path, copy: Path | None) -> str | None:
    """The image that would start now, asked beforehand whether it can be imported and likes the configuration.

    Raises Unavailable where the machine has no process to give: that is no word of the image's.
    """
    words = ["config", "check", "--config", str(config_file), *(["--copy", str(copy)] if copy else [])]
    try:
        done = subprocess.run(
            runtime.command(*words),
            env=runtime.environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_WITHIN_S,
            check=False,
            text=True,
        )
    except OSError as error:
        if error.errno in _NO_PROCESS:
            raise Unavailable(f"cannot ask whether the supervisor can start: {error.strerror}; try again") from error
        return str(error)
    except subprocess.TimeoutExpired as error:
        return str(error)
    return None if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit code {done.returncode}"


def execute(runtime: Runtime, words: Sequence[str], lock: int | None, before: Sequence[str]) -> OSError:
    """Execute ``operations-center WORDS`` in this process, with the descriptor of its lock, if it has it, appended.

    ``before`` is the command line by which this process goes on as it is, should the next image end by itself. A
    signal that comes meanwhile waits: the next image takes it when it is ready to. Returns only the failure.
    """
    handed_on = [] if lock is None else ["--lock-fd", str(lock)]
    environment = runtime.environment(os.environ)
    # Only what is changed: everybody may read the command line of a process, and it may not be long.
    changed = {name: os.environ.get(name) for name in CHANGED}
    back = {
        "argv": [*before, *handed_on],
        "environment": changed,
        "lock": lock,
        "hangs_s": HANGS_MS / 1000,
        "certain_s": CERTAIN_MS / 1000,
    }
    argv = runtime.script(_LAUNCH, json.dumps(back), *words, *handed_on)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # It would go on in the next image, and end it before that can take a signal.
    _set_timer(0)
    _hand_on(lock, True)
    try:
        os.execve(argv[0], argv, environment)
    except OSError as error:
        return error
    finally:
        _hand_on(lock, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _hand_on(lock: int | None, is_handed_on: bool) -> None:
    if lock is not None:
        os.set_inheritable(lock, is_handed_on)
