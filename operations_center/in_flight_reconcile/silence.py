"""How long runs have printed nothing, as far as this process has seen it.

Judged by the length of what they print, not by a file's time, which an executor and a clock may set.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from operations_center.heart import Awake
from operations_center.keeper.output import sizes_of
from operations_center.model import Run


@dataclass
class Silence:
    """Remembers what it saw of each run for as long as this process lives.

    ``awake`` is to be asked in each turn of the process's loop: what it did not see because it was suspended itself is
    held against nobody.
    """

    awake: Awake
    _seen: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    """Sizes of the streams, and since when (monotonic ms) they have been so."""

    def of(self, run: Run) -> int:
        """Return for how many milliseconds a run has been silent; 0 where nobody asks, or nothing can be seen."""
        now = self.awake.look().monotonic
        sizes = sizes_of(run.keeper) if run.idle_timeout_ms is not None and run.keeper is not None else None
        if sizes is None:
            self.forget(run.run_id)
            return 0
        before, since = self._seen.get(run.run_id, (None, now))
        if sizes != before:
            since = now
        self._seen[run.run_id] = (sizes, since)
        return now - max(since, self.awake.since)

    def forget(self, run_id: str) -> None:
        self._seen.pop(run_id, None)

    def forget_all_but(self, run_ids: Collection[str]) -> None:
        for run_id in self._seen.keys() - set(run_ids):
            self.forget(run_id)

    def is_over(self, run: Run) -> bool:
        """Return whether a run has been silent for longer than it may."""
        return run.idle_timeout_ms is not None and self.of(run) >= run.idle_timeout_ms
