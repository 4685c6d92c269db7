"""An executor that witnesses itself, and behaves as its task's body says: in order, badly, or not at all.

Everything that it says is written with O_APPEND in one write. Three kernel locks bear witness without a word:
one for its task, one for its run's place in the crowd of its backend, and the file that says it began. A child
inherits the locks, so they are held until the last process of the tree is gone.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHELF = Path(os.environ["SOAK_SHELF"])
RUN = os.environ["OPERATIONS_CENTER_RUN_ID"]
TASK = os.environ["OPERATIONS_CENTER_TASK_ID"]
BACKEND = os.environ["OPERATIONS_CENTER_BACKEND"]
CAP = int(os.environ["SOAK_CAPS"].partition(f"{BACKEND}=")[2].partition(",")[0])
TRY_LATER = 75


def say(word: str, **more: Any) -> None:
    line = {
        "word": word,
        "run": RUN,
        "task": TASK,
        "backend": BACKEND,
        "pid": os.getpid(),
        "at_ns": time.monotonic_ns(),
    }
    file = os.open(SHELF / "witness.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, json.dumps({**line, **more}).encode() + b"\n")
    os.close(file)


def is_first() -> bool:
    """False where this very run has begun before."""
    try:
        os.close(os.open(SHELF / "began" / RUN, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def locked(path: Path) -> bool:
    """Take a lock that the whole tree holds from now on; False where another tree holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def join_crowd() -> int:
    """How many trees of this backend live at one moment, this one among them."""
    place = SHELF / "crowd" / BACKEND
    draft = SHELF / "drafts" / RUN
    locked(draft)
    # Put there when it is locked: a lock there that nobody holds is one of the dead.
    draft.rename(place / RUN)
    once = {name for name in os.listdir(place) if is_held(place / name)}
    # Who held it before and holds it after held it in between.
    return sum(is_held(place / name) for name in once)


def is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return False


def result(**document: Any) -> None:
    path = os.environ["OPERATIONS_CENTER_RESULT_FILE"]
    with open(f"{path}.draft", "w") as file:
        json.dump(document, file)
    os.rename(f"{path}.draft", path)


def work(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        print("working", flush=True)
        time.sleep(min(left, 0.25))


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def start_daemon(seconds: float) -> None:
    """Double fork: no child of ours, in a session of its own."""
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    say("daemon begins")
    time.sleep(seconds)
    say("daemon ends")
    os._exit(0)


def start_children(count: int, seconds: float) -> list["subprocess.Popen[bytes]"]:
    return [subprocess.Popen(["sleep", str(seconds)], close_fds=False) for _ in range(count)]


def tries() -> int:
    """How often this task was here before."""
    with (SHELF / "tries" / TASK).open("a+") as file:
        file.write(".")
        file.flush()
        file.seek(0)
        return len(file.read()) - 1


# Each act is given its task's wish and returns the exit code, None for 0.


def follow(wish: dict[str, Any]) -> None:
    work(wish["seconds"])
    result(summary="asked for more", follow_ups=wish["follow_ups"])


def claim(wish: dict[str, Any]) -> None:
    work(wish["seconds"])
    result(outcome="succeeded", summary="said so before it ended")
    work(0.2)


def fail(wish: dict[str, Any]) -> int:
    work(wish["seconds"])
    return 3


def give_up(wish: dict[str, Any]) -> None:
    work(wish["seconds"])
    result(outcome="blocked", summary="somebody has to look")


def later(wish: dict[str, Any]) -> int:
    work(wish["seconds"])
    return TRY_LATER if tries() < wish["times"] else 0


def stubborn(wish: dict[str, Any]) -> None:
    ignore_signals()
    work(wish["seconds"])


def children(wish: dict[str, Any]) -> None:
    for child in start_children(wish["count"], wish["seconds"]):
        child.wait()


def leave(wish: dict[str, Any]) -> None:
    ignore_signals()
    start_children(wish["count"], wish["seconds"])


def daemon(wish: dict[str, Any]) -> None:
    start_daemon(wish["seconds"] + wish["after"])
    work(wish["seconds"])


def session(wish: dict[str, Any]) -> None:
    if os.fork() == 0:
        os.setsid()
        work(wish["seconds"])
        os._exit(0)
    os.wait()


def overrun(wish: dict[str, Any]) -> None:
    if wish["stubborn"]:
        ignore_signals()
    work(600)


def silent(_wish: dict[str, Any]) -> None:
    time.sleep(600)


def hostile(wish: dict[str, Any]) -> None:
    """Attack the fleet that runs it; how its own task ends then is its own matter."""
    program = Path(__file__).with_name("hostile.py")
    subprocess.run([sys.executable, "-I", "-S", program, str(wish["count"]), SHELF / "precious"], check=False)
    work(wish["seconds"])


def plain(wish: dict[str, Any]) -> None:
    work(wish["seconds"])


ACTS: dict[str, Callable[[dict[str, Any]], int | None]] = {
    act.__name__.replace("_", " "): act
    for act in (
        *(plain, follow, claim, fail, give_up, later, stubborn),
        *(children, leave, daemon, session, overrun, silent, hostile),
    )
}


def main() -> int:
    wish = json.loads(json.loads(Path(os.environ["OPERATIONS_CENTER_TASK_FILE"]).read_text())["body"])
    first = is_first()
    alone = locked(SHELF / "tasks" / TASK)
    say("begin", act=wish["act"], first=first, alone=alone, crowd=join_crowd(), cap=CAP)
    code = ACTS[wish["act"]](wish) or 0
    say("end", code=code)
    return code


sys.exit(main())
