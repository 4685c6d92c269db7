"""What an executor says of itself: one line when it begins and one when it ends, in a file that all of them share.

Written by the executor alone, with O_APPEND and in one write, so that it owes nothing to what it is to check.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

TRY_LATER = 75


def say(word: str, code: int | None = None) -> None:
    line = {
        "word": word,
        "task": os.environ["OPERATIONS_CENTER_TASK_ID"],
        "run": os.environ["OPERATIONS_CENTER_RUN_ID"],
        "backend": os.environ["OPERATIONS_CENTER_BACKEND"],
        "attempt": int(os.environ["OPERATIONS_CENTER_ATTEMPT"]),
        "pid": os.getpid(),
        "at_ns": time.monotonic_ns(),
        "code": code,
    }
    file = os.open(os.environ["DEMO_WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)


def result(summary: str, **more: Any) -> None:
    """Tell what came of it, by rename, so that nobody reads one half of it."""
    path = os.environ["OPERATIONS_CENTER_RESULT_FILE"]
    with open(f"{path}.draft", "w") as file:
        json.dump({"summary": summary, **more}, file)
    os.rename(f"{path}.draft", path)


def witnessed(work: Callable[..., int | None]) -> None:
    """Run ``work`` with the arguments of the command line, between the two lines."""
    say("begin")
    code = work(*sys.argv[1:]) or 0
    say("end", code)
    sys.exit(code)
