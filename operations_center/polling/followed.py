"""What a poller remembers of a run between two requests."""

from dataclasses import dataclass


@dataclass
class Followed:
    """A run between two requests. Moments in monotonic ms; ``next_at`` None waits for a person.

    ``asked_at`` is when the last request began; ``asks`` in a row that told nothing new; ``again``: an earlier
    submission of the run is in doubt; ``is_over``:
    there is nothing left to do for it here.
    """

    run_id: str
    next_at: int | None = 0
    busy: bool = False
    again: bool = False
    submissions: int = 0
    asked_at: int = 0
    asks: int = 0
    said: tuple[str, float | None] | None = None
    remembered_at: int = 0
    told_to_end: bool = False
    is_over: bool = False


class Changed(Exception):
    """Somebody has changed the run since it was read. It may be ours all the same, as with a stop: look again."""
