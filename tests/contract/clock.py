"""A clock for the contracts' tests."""

from dataclasses import dataclass

from operations_center.clock import Now


@dataclass
class HandClock:
    """A clock that moves when it is told to."""

    wall: int = 1_760_000_000_000

    def now(self) -> Now:
        return Now(self.wall, self.wall - 1_759_000_000_000)

    def advance(self, milliseconds: int) -> None:
        self.wall += milliseconds
