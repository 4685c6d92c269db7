"""How large a task may be, and how many tasks one run or one lineage may ask for: the same on every way in. Pure."""

from collections.abc import Mapping
from typing import Any

LARGEST_TITLE = 10_000
LARGEST_BODY = 16 * 1024 * 1024
"""In characters. SQLite would take more, but each task is also kept in the log and handed to an executor whole."""

MOST_FOLLOW_UPS = 100
LARGEST_FOLLOW_UPS = LARGEST_BODY
"""What one run may ask for: a number of tasks, and the characters of all their texts together."""

MOST_IN_A_LINEAGE = 1_000
"""Follow-ups of follow-ups, over all runs that descend from one task."""


def check_text(name: str, value: Any) -> None:
    """Check one text of a task; ``name`` says which. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"its {name} is not a string; put it in quotes")
    if "\0" in value:
        raise ValueError(f"its {name} has a NUL character; take it out")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"its {name} is not UTF-8 text; write it as UTF-8")
    largest = LARGEST_BODY if name == "body" else LARGEST_TITLE
    if len(value) > largest:
        raise ValueError(f"its {name} has {len(value)} characters; give at most {largest}")
    if name in ("title", "kind") and not value.strip():
        raise ValueError(f"its {name} is empty; give one")


def check_texts(texts: Mapping[str, Any]) -> None:
    """Check a task's title, kind, body, and whatever else of it is a text. Raises ValueError."""
    for name, value in texts.items():
        check_text(name, value)
