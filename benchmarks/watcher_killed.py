"""A watcher is killed → its replacement's first instruction, ready, its runs adopted, a new task admitted.

The watcher of a fleet gets SIGKILL while three of its executors run; the moment before the signal is the beginning.

- first instruction: the replacement, as soon as Python runs in it, writes its pid into a FIFO. That takes no change of
  the program: a sitecustomize module writes at the interpreter's start and, by os.register_at_fork, after a fork. The
  peers' children are shells that do the same as their first act.
- ready: it has reconciled and says so in its pulse, which is read without a pause.
- adopted: no run in the ledger belongs to the dead watcher any more; seen as in keeper_killed.
- admitted: a task that was added right after the kill (in every second kill) is in the ledger as a run.

The floor is a bare Python loop of waitpid and posix_spawn of a shell. With --peers the same kill of a child is measured
at other supervisors (peers/a_restart.py, which also has our watchers among its rows); the target is runit's median.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import floors, peers
from benchmarks.figures import Options, Row, main, milliseconds, summary
from benchmarks.fleets import (
    Announcements,
    LedgerEye,
    add_task,
    announcing_interpreters,
    directory,
    kill,
    one_role,
    running_fleet,
    when_each,
)
from operations_center.pulse import read_pulse
from operations_center.wiring import Center
from tests.fleet import Fleet

KILLS = 40
RUNS = 3
TARGET_MS = 30.0
SETTINGS = ("runit:default", "s6:best", "pm2:default", "supervisord:best", "circus:best", "honcho:default")


def measure(options: Options) -> list[Row]:
    kills = options.several(KILLS)
    with directory() as root:
        moments = moments_after_kills(root, kills)
        floor = {"waitpid + posix_spawn": summary(milliseconds(floors.start_again(root, kills)))["p50"]}
    restarts = peers.restarts(SETTINGS, quick=options.quick) if options.peers else {}
    runit = restarts.get("runit default")
    return [
        _row("first instruction", moments["first"], floor | restarts, runit, "runit's median in this run"),
        _row("ready", moments["ready"], {}, TARGET_MS),
        _row(f"its {RUNS} runs adopted", moments["adopted"], {}, TARGET_MS),
        _row("a task admitted", moments["admitted"], {}, None),
    ]


def _row(what: str, took: list[int], beside: dict[str, float], target: float | None, target_is: str = "") -> Row:
    spread = summary(milliseconds(took))
    return Row(f"watcher killed → {what}, median", "ms", spread["p50"], beside, target, target_is, spread=spread)


def moments_after_kills(root: Path, kills: int) -> dict[str, list[int]]:
    """ns after the kill, by what happened then."""
    executors, watchers = Announcements(root / "executors"), Announcements(root / "watchers")
    took: dict[str, list[int]] = {"first": [], "ready": [], "adopted": [], "admitted": []}
    with (
        running_fleet(
            root, one_role(executors.executor(), cap=RUNS + kills), announcing_interpreters(watchers)
        ) as fleet,
        fleet.center() as center,
        LedgerEye(fleet.state.ledger) as eye,
    ):
        for _ in range(RUNS):
            add_task(center)
            eye.when_started(executors.next()[0])
        for number in range(kills):
            time.sleep(random.uniform(0.3, 0.6))
            watchers.take()
            look = look_at_admission if number % 2 else look_at_replacement
            for name, nanoseconds in look(fleet, center, eye, watchers).items():
                took[name].append(nanoseconds)
            if number % 2:
                end_newest_run(eye, executors)
    return took


def look_at_replacement(fleet: Fleet, _center: Center, eye: LedgerEye, watchers: Announcements) -> dict[str, int]:
    old = fleet.pulse("goal").pid
    begun = kill(old)
    moments = when_each(
        {
            "ready": is_ready(fleet, old),
            "adopted": lambda: not eye.one("SELECT 1 FROM runs WHERE state <> 'closed' AND watcher_pid = ?", old),
        },
        meanwhile=watchers.read,
    )
    # Other interpreters may have announced themselves: the replacement is the one that is ready now.
    new = fleet.pulse("goal").pid
    moments["first"] = next(at for pid, at in watchers.read() if pid == new)
    return {name: at - begun for name, at in moments.items()}


def look_at_admission(fleet: Fleet, center: Center, eye: LedgerEye, _watchers: Announcements) -> dict[str, int]:
    begun = kill(fleet.pulse("goal").pid)
    task_id, _ = add_task(center)
    return {"admitted": eye.when("SELECT 1 FROM runs WHERE task_id = ?", task_id) - begun}


def is_ready(fleet: Fleet, old: int) -> Callable[[], bool]:
    def look() -> bool:
        pulse = read_pulse(fleet.state.pulse("goal"))
        return pulse is not None and pulse.pid != old and pulse.state == "ready"

    return look


def end_newest_run(eye: LedgerEye, executors: Announcements) -> None:
    """So that each kill finds the same number of runs."""
    executor, _ = executors.next()
    run_id, keeper = eye.when_started(executor)
    kill(keeper, executor)
    eye.when_free(run_id)


if __name__ == "__main__":
    main(measure)
