"""A backend: what runs a task, and how much of it at once."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from operations_center.admission import Limits
from operations_center.keeper.launch import LaunchPlan
from operations_center.model import Run, Task


class Backend(Protocol):
    @property
    def kind(self) -> str | None:
        """As its runs have it: None for a program of the user's, ``http_job`` for a job at a provider."""

    @property
    def limits(self) -> Limits: ...

    @property
    def timeout_ms(self) -> int | None: ...

    @property
    def grace_ms(self) -> int: ...


@runtime_checkable
class ProgramBackend(Backend, Protocol):
    """A backend whose runs are processes of this machine. ``max_output`` is in bytes; None is no limit."""

    @property
    def idle_timeout_ms(self) -> int | None: ...

    @property
    def max_output(self) -> int | None: ...

    def launch_plan(self, run: Run, task: Task, directory: Path) -> LaunchPlan:
        """How to start a run of the task in its run directory."""
