"""A board: where tasks come from, and what is told about them.

The ledger says who may run a task; the board is only told. So every method may be repeated: a task is claimed,
finished and requeued *by a run*, and doing that a second time changes nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from operations_center.model import Finish, Task, TaskState


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A task that the board shows as running, and the run in whose name it does."""

    task_id: str
    run_id: str


PAGE = 32
"""How many ready tasks are read at once."""


class ReadyTask(msgspec.Struct, frozen=True, gc=False):
    """What is to be known of a task to decide whether it may start; its text comes with the claim.

    ``backend``: None is its role's. ``urgency``: see ``urgency_of``.
    """

    task_id: str
    kind: str
    backend: str | None
    urgency: int

    @property
    def place(self) -> tuple[int, int, str]:
        """Its place in the order of all ready tasks, over all roles: a number that is older is shorter or less."""
        return self.urgency, len(self.task_id), self.task_id


class Board(Protocol):
    """Every method raises BoardUnreachable when the board does not answer in time."""

    def ready(
        self, kinds: Collection[str], backends: Collection[str | None], after: ReadyTask | None = None
    ) -> Sequence[ReadyTask]:
        """Read the first page of tasks that could be claimed, in the order of their places, or the page ``after`` one.

        A page that is not full is the last. Of tasks that name one of ``backends``; None is of those that name none.
        A task that backs off is not among them.
        """

    def next_ready_at(self, kinds: Collection[str]) -> int | None:
        """Say when the next task that backs off may be claimed (wall-clock ms); None where none does."""

    def states(self, task_ids: Collection[str]) -> Mapping[str, TaskState | None]:
        """None for a task that the board does not know (any more)."""

    def task(self, task_id: str) -> Task | None:
        """A task as it is now; None for one that the board does not know (any more)."""

    def running(self) -> Sequence[Claim]:
        """Every task that is shown as running in our name."""

    def claim(self, task_id: str, run_id: str) -> Task | None:
        """The task as it was claimed; None when somebody else was quicker, or it is not ready any more."""

    def finish(self, finishes: Mapping[str, tuple[str, Finish]]) -> Mapping[str, str]:
        """Tell the outcome of runs: ``{run_id: (task_id, finish)}``. A task that is no longer the run's is left.

        By run: why some of its follow-ups were not made. Those of one that has been told before are not named again.
        """

    def block(self, task_id: str, run_id: str, finish: Finish) -> None:
        """Show a task as blocked whose run is still open, with a finish yet to come. One that is not its is left."""

    def hold(self, task_id: str, run_id: str) -> bool:
        """Have a blocked task wait for one more finish of its last run; False if it is not blocked any more."""

    def requeue(self, claim: Claim) -> bool:
        """Make a task ready again that is shown as running but is not; False if it is not shown so any more."""
