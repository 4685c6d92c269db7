"""The program that the supervisor's process runs, exchanged for another one in this same process."""

import errno
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from operations_center.environment import HAND_ON, TAKE_OVER, kept_apart, visible
from operations_center.errors import Unavailable
from operations_center.logs import drain_logs
from operations_center.releases.runtime import CHANGED, Runtime
from operations_center.signals import SIGNALS

INSTALLED_CODE = "installed"
"""In the place of a commit: the code that ``up`` was started with."""

CHECK_WITHIN_S = 10.0
"""An image that takes longer to say that it can start is not changed to."""

LOOK_EVERY_S = 0.5
"""Whether it has said so. The looks are counted: time in which this process stood still is one of them."""

_NO_PROCESS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

HANGS_MS = 25_000
CERTAIN_MS = 5_000
"""A loop on trial that does not turn for the first, and then not for the second either, hangs."""

LOOKS = 5
"""So many signals make the second time, one after the other as they are due."""

# Given as text, so that no release brings its own: whether the next image raises or hangs, this process goes on as
# before. A process that was stopped, however often, gets a signal late: the second time then begins anew.
_LAUNCH = (
    TAKE_OVER
    + HAND_ON
    + """
import runpy, signal, sys, time, traceback
try:
    os.environ["SPT_NOENV"] = "1"
    import setproctitle
    setproctitle.setproctitle("oc-sup")
except ImportError:
    pass
finally:
    del os.environ["SPT_NOENV"]
before = json.loads(sys.argv.pop(1))
me, looks, looked_at = os.getpid(), 0, 0.0
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
    hand_on()
    os.execv(before["argv"][0], [*before["argv"], "--handed-back", reason])
def too_late(*_):
    global looks, looked_at
    last, looked_at = looked_at, time.monotonic()
    looks = looks + 1 if looked_at - last < 2 * before["look_s"] else 0
    signal.setitimer(signal.ITIMER_REAL, before["look_s"], before["look_s"])
    if os.getpid() == me and looks >= before["looks"]:
        traceback.print_stack()
        go_on_as_before("its supervisor does not turn its loop")
signal.signal(signal.SIGALRM, too_late)
signal.setitimer(signal.ITIMER_REAL, before["hangs_s"], before["look_s"])
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
)


def end_for_good() -> None:
    """This image is about to end because that is its task now, and not because it cannot go on."""
    os.environ["OPERATIONS_CENTER_SUPERVISOR_ENDS"] = "1"
    _set_timer(0)


def loop_turned(*, on_trial: bool) -> None:
    """To be said with each turn of its loop by an image that was executed; not on trial, it is trusted from then on."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        _set_timer(HANGS_MS if on_trial else 0)


def _set_timer(milliseconds: int) -> None:
    signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000, _look_s() if milliseconds else 0)


def _look_s() -> float:
    return CERTAIN_MS / 1000 / LOOKS


def why_not_start(runtime: Runtime, config_file: Path, copy: Path | None) -> str | None:
    """The image that would start now, asked beforehand whether it can be imported and likes the configuration.

    Raises Unavailable where the machine has no process to give: that is no word of the image's.
    """
    words = ["config", "check", "--config", str(config_file), *(["--copy", str(copy)] if copy else [])]
    try:
        asked = subprocess.Popen(
            runtime.command(*words),
            env=visible(runtime.environment(os.environ)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        if error.errno in _NO_PROCESS:
            raise Unavailable(f"cannot ask whether the supervisor can start: {error.strerror}; try again") from error
        return str(error)
    with asked:
        complaint = _complaint_of(asked)
    if complaint is None:
        return f"{shlex.join(words)} was not done within {CHECK_WITHIN_S:g} s"
    return None if asked.returncode == 0 else " ".join(complaint.split()) or f"exit code {asked.returncode}"


def _complaint_of(asked: "subprocess.Popen[str]") -> str | None:
    """Once it has ended; None for one that did not in time, and was killed."""
    for _ in range(round(CHECK_WITHIN_S / LOOK_EVERY_S)):
        with suppress(subprocess.TimeoutExpired):
            return asked.communicate(timeout=LOOK_EVERY_S)[1]
    asked.kill()
    return None


def execute(runtime: Runtime, words: Sequence[str], lock: int | None, before: Sequence[str]) -> OSError:
    """Execute ``operations-center WORDS`` in this process, with the descriptor of its lock, if it has it, appended.

    ``before`` is the command line by which this process goes on as it is, should the next image end by itself. A
    signal that comes meanwhile waits: the next image takes it when it is ready to. Returns only the failure.
    """
    handed_on = [] if lock is None else ["--lock-fd", str(lock)]
    # Only what is changed: everybody may read the command line of a process, and it may not be long.
    changed = {name: os.environ.get(name) for name in CHANGED}
    back = {
        "argv": [*before, *handed_on],
        "environment": changed,
        "lock": lock,
        "hangs_s": HANGS_MS / 1000,
        "look_s": _look_s(),
        "looks": LOOKS,
    }
    argv = runtime.script(_LAUNCH, json.dumps(back), *words, *handed_on)
    drain_logs()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # It would go on in the next image, and end it before that can take a signal.
    _set_timer(0)
    _hand_on(lock, True)
    try:
        with kept_apart(runtime.environment(os.environ)) as (environment, variables):
            os.set_inheritable(variables, True)
            os.execve(argv[0], argv, environment)
    except OSError as error:
        return error
    finally:
        _hand_on(lock, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _hand_on(lock: int | None, is_handed_on: bool) -> None:
    if lock is not None:
        os.set_inheritable(lock, is_handed_on)
