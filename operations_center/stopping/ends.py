"""Look at runs and wait for their end, bring about that of processes, and count the executors that are left."""

import select
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from operations_center.clock import SystemClock
from operations_center.heart import Awake, Patience
from operations_center.identity import Process
from operations_center.in_flight_reconcile import Asking, Scope, Trigger, clear_orphaned_in_flight
from operations_center.keeper.processes import proven_keeper
from operations_center.keeper.stop import signal_processes
from operations_center.model import Run
from operations_center.pidfds import opened_pidfds, wait_for_end
from operations_center.wiring import Center

LOOK_EVERY_S = 0.1
JOB_LOOK_EVERY_S = 0.5
LONGEST_WAIT_S = 1.0

ASK_AGAIN_MS = 1_000
LONGEST_PAUSE_MS = 10_000
"""Between a command's asks for one job that goes on; they double."""


@dataclass
class Passes:
    """The reconciliations of one command, which looks often and asks providers rarely.

    Its first question about a job is a person's and goes before all pauses; each further one waits for its turn.
    """

    center: Center
    scope: Scope
    _asked: Counter[str] = field(default_factory=Counter)

    def reconcile(self) -> None:
        """Raises LedgerBusy."""
        pauses = {run_id: _pause_ms(times) for run_id, times in self._asked.items()}
        asking = Asking(by_person=True, again_after_ms=pauses)
        report = clear_orphaned_in_flight(
            self.center.surroundings, trigger=Trigger.CLI, scope=self.scope, asking=asking
        )
        self._asked.update(report.asked)


def _pause_ms(asked: int) -> int:
    return int(min(ASK_AGAIN_MS * 2 ** min(asked - 1, 20), LONGEST_PAUSE_MS))


def end_processes(processes: Iterable[Process], kill_after_s: float, until: float) -> list[Process]:
    """TERM, then KILL; those that still live at the monotonic time ``until`` (seconds)."""
    left = list(processes)
    signal_processes(left, signal.SIGTERM)
    # A stopped process would take its TERM only when it goes on.
    signal_processes(left, signal.SIGCONT)
    left = _wait_awake(left, kill_after_s, until)
    if left and time.monotonic() < until:
        signal_processes(left, signal.SIGKILL)
        left = wait_for_end(left, until)
    return left


def _wait_awake(left: list[Process], seconds: float, until: float) -> list[Process]:
    """Time in which this process stood still does not count: they may have done so too."""
    awake = Awake(SystemClock())
    patience = Patience(awake.since, round(seconds * 1000))
    while left and (now := awake.look().monotonic) < (end := min(awake.end_of(patience), until * 1000)):
        left = wait_for_end(left, min(now / 1000 + LONGEST_WAIT_S, end / 1000))
    return left


def wait_for_change(center: Center, runs: Sequence[Run], until: float | None) -> None:
    """Until a keeper ends, a KILL is due or it is time to look again; not at all without runs."""
    if not runs:
        return
    keepers = [keeper for run in runs if (keeper := keeper_of(center, run)) is not None]
    now = center.clock.now().monotonic
    kills_s = [max((run.kill_mono - now) / 1000, LOOK_EVERY_S) for run in runs if run.kill_mono is not None]
    with opened_pidfds(keepers) as alive:
        jobs = sum(run.is_job for run in runs)
        changes_soon = len(alive) + jobs < len(runs)
        longest = LOOK_EVERY_S if changes_soon else JOB_LOOK_EVERY_S if jobs else LONGEST_WAIT_S
        left_s = longest if until is None else max(until - time.monotonic(), 0.0)
        select.select(list(alive), [], [], min([longest, left_s, *kills_s]))


def keeper_of(center: Center, run: Run) -> Process | None:
    return run.keeper or proven_keeper(center.processes, run.run_id, center.state.path_of_run(run.run_id))


def listed(runs: Sequence[Run]) -> str:
    shown = ", ".join(run.run_id for run in runs[:5])
    more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
    return f"{'run' if len(runs) == 1 else 'runs'} {shown}{more}"
