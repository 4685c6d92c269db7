"""Twenty pulls in a row under a fleet at work: what its executors, its roles and its slots notice.

Three roles share a cap of six; six executors of eight seconds run all the time. The release is this very program, with
another line in it each time; it is pushed into a bare repository, pulled from there with real git, examined, and rolled
out process by process, the supervisor last. An executor writes when it begins and when it ends. The gap of
a role is the time between two watchers of it: from the order to leave to the ready one that follows.
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import operations_center
from benchmarks.figures import Options, Row, main, summary
from benchmarks.fleets import directory, running_fleet
from operations_center.model import Event
from tests.fleet import Fleet, wait_until

PULLS = 20
ROLES = ("goal", "test", "improve")
CAP = 6
EXECUTOR_S = 8
CANARY = "1s"
TASKS_PER_PULL = 2
"""Of each role: there is work all the time."""

LONGEST_GAP_MS = 1_000

PACKAGE = Path(operations_center.__file__).parent


def measure(options: Options) -> list[Row]:
    with directory() as root:
        author = Author(root)
        with running_fleet(root, configuration(root, 1 if options.quick else EXECUTOR_S)) as fleet:
            return pulled(fleet, author, options.several(PULLS))


def pulled(fleet: Fleet, author: "Author", pulls: int) -> list[Row]:
    tasks = sum(len(fleet.add(TASKS_PER_PULL * pulls, role)) for role in ROLES)
    seconds = [pull(fleet, author.push(number)) for number in range(pulls)]
    wait_until(lambda: fleet.json("status")["board"]["tasks"]["done"] == tasks, "all tasks are done", 600)
    return rows(fleet, seconds, tasks)


def rows(fleet: Fleet, seconds: Sequence[float], tasks: int) -> list[Row]:
    with fleet.center() as center:
        gaps = longest_gaps(list(center.ledger.events()))
        held = sum(center.ledger.slots_held().values())
    begun, ended = fleet.witnessed("begin"), fleet.witnessed("end")
    once = sorted(event.task_id for event in begun) == sorted(event.task_id for event in ended)
    spread = summary(seconds)
    return [
        Row("a pull, from the push to the last process, median", "s", spread["p50"], spread=spread),
        Row("longest time of a role without a watcher", "ms", max(gaps), target=LONGEST_GAP_MS, spread=summary(gaps)),
        Row("executors begun, beside tasks done", "", len(begun), {"tasks": tasks}, tasks, "each once"),
        Row("executors that were interrupted", "", 0 if once else len(begun) - len(ended), target=0),
        Row("most executors at once", "", fleet.most_at_once(), target=CAP, target_is="the cap"),
        Row("slots held at the end", "", held, target=0),
    ]


def configuration(root: Path, executor_s: float) -> str:
    roles = "".join(f'[roles.{role}]\nbackend = "agent"\nconcurrency = 2\n' for role in ROLES)
    return f"""{roles}
[backends.agent]
kind = "command"
argv = ["python3", "witness.py", "{executor_s}"]
working_directory = "."
max_concurrent = {CAP}
[code_pull]
repository = "{root / "clone"}"
every = "1h"
canary = "{CANARY}"
"""


class Author:
    """Pushes commits of this program into a bare repository, of which there is a clone."""

    def __init__(self, root: Path) -> None:
        self._work = root / "author"
        _git(root, "init", "--quiet", "--bare", "--initial-branch=main", "remote.git")
        _git(root, "init", "--quiet", "--initial-branch=main", "author")
        _git(self._work, "remote", "add", "origin", str(root / "remote.git"))
        shutil.copytree(PACKAGE, self._work / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        self.push(-1)
        _git(root, "clone", "--quiet", "remote.git", "clone")

    def push(self, number: int) -> str:
        with (self._work / PACKAGE.name / "watcher.py").open("a") as file:
            file.write(f"# {number}\n")
        _git(self._work, "add", "--all")
        _git(self._work, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", f"{number}")
        _git(self._work, "push", "--quiet", "origin", "main")
        return _git(self._work, "rev-parse", "HEAD")


def _git(directory: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(directory), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def pull(fleet: Fleet, commit: str) -> float:
    """Seconds."""
    begun = time.monotonic()
    told = fleet.json("pull")
    assert (told["commit"], told["state"]) == (commit, "current"), told
    return time.monotonic() - begun


def longest_gaps(events: Sequence[Event]) -> list[float]:
    """ms of each exchange: from the order to the ready watcher."""
    gaps = []
    left: dict[str, int] = {}
    for event in events:
        role = str(event.data.get("role"))
        if event.kind == "watcher.exchanged":
            left[role] = event.at
        elif event.kind == "watcher.ready" and role in left:
            gaps.append(float(event.at - left.pop(role)))
    return gaps


if __name__ == "__main__":
    main(measure)
