"""The one gate through which every run ends: settle → finish → close.

*Settle* records the outcome and frees the slot; *finish* tells the board; *close* lets the task go. Each
step is durable before the next begins, and each may be repeated: a run that died in between is taken up by
the next reconciliation, which tells the board the very same thing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from operations_center.boards import Board
from operations_center.clock import Clock
from operations_center.config import Role
from operations_center.identity import Process
from operations_center.keeper.inspect import read_file_of
from operations_center.ledger import Ledger
from operations_center.model import COUNTED_AS_ATTEMPT, Finish, FollowUp, Run, RunState, TaskState
from operations_center.outcomes import Ending, finish_of


@dataclass(frozen=True, slots=True)
class Settlement:
    """``policy_of`` maps a role's name to its policy; ``directory_of`` a run id to its directory."""

    ledger: Ledger
    board: Board
    clock: Clock
    policy_of: Callable[[str], Role]
    directory_of: Callable[[str], Path]

    def end(self, run: Run, ending: Ending, finisher: Process, note: Mapping[str, Any] | None = None) -> Run | None:
        """All three steps. None when somebody else has changed the run; raises BoardUnreachable after settling."""
        settled = self.settle(run, ending, finisher, note)
        if settled is None:
            return None
        closed = self.finish_and_close([settled])
        return closed[0] if closed else None

    def settle(self, run: Run, ending: Ending, finisher: Process, note: Mapping[str, Any] | None = None) -> Run | None:
        """Record the outcome and free the slot; None when somebody else has changed the run."""
        now = self.clock.now()
        policy, task = self.policy_of(run.role), self._task_of(run)
        with self.ledger.transaction():
            before = self.ledger.attempts(run.task_id)
            finish, after = finish_of(run, ending, before, policy=policy, task=task, now=now.wall)
            settled = self.ledger.change_run(
                run,
                "run.settled",
                note=note,
                state=RunState.SETTLING,
                holder=run.holder + 1,
                watcher_pid=finisher.pid,
                watcher_ticks=finisher.start_ticks,
                outcome=ending.outcome,
                proof=ending.proof,
                exit_code=ending.exit_code,
                reason=ending.reason,
                finish=asdict(finish),
                settled_at=now.wall,
                settled_mono=now.monotonic,
            )
            if settled is not None and (after != before or ending.outcome in COUNTED_AS_ATTEMPT):
                self.ledger.set_attempts(run.task_id, after)
            return settled

    def take_over(self, run: Run, finisher: Process) -> Run | None:
        """Become the one who tells the board about a settled run."""
        now = self.clock.now()
        return self.ledger.change_run(
            run,
            "run.finish_taken_over",
            holder=run.holder + 1,
            watcher_pid=finisher.pid,
            watcher_ticks=finisher.start_ticks,
            settled_mono=now.monotonic,
        )

    def finish_and_close(self, settled: Sequence[Run]) -> list[Run]:
        """Tell the board, then let the tasks go; the runs that were closed. Raises BoardUnreachable."""
        self.board.finish({run.run_id: (run.task_id, _finish(run)) for run in settled})
        closed_at = self.clock.now().wall
        with self.ledger.transaction():
            changed = [
                self.ledger.change_run(run, "run.closed", state=RunState.CLOSED, closed_at=closed_at) for run in settled
            ]
        return _present(changed)

    def _task_of(self, run: Run) -> FollowUp:
        """The task as the executor saw it: the board may have changed or forgotten it meanwhile."""
        try:
            return msgspec.json.decode(read_file_of(self.directory_of(run.run_id) / "task.json"), type=FollowUp)
        except (OSError, msgspec.DecodeError):
            return FollowUp(title=f"After {run.task_id}", kind=run.role)


def _present(runs: Iterable[Run | None]) -> list[Run]:
    return [run for run in runs if run is not None]


def _finish(run: Run) -> Finish:
    stored = run.finish or {}
    return Finish(
        state=TaskState(stored["state"]),
        reason=stored["reason"],
        follow_ups=tuple(FollowUp(**follow_up) for follow_up in stored["follow_ups"]),
    )
