"""How keys, values and near misses are spelled in the line that reports a mistake."""

import json
import re
from collections.abc import Iterable
from typing import Any

from operations_center.text import hide_secrets

Key = tuple[str, ...]

_BARE = re.compile(r"[A-Za-z0-9_.-]+(\[[0-9]+\])?")
_LONGEST_VALUE = 60


def spell_key(key: Key) -> str:
    return ".".join(part if _BARE.fullmatch(part) else json.dumps(part[:_LONGEST_VALUE]) for part in key)


def spell_value(value: Any) -> str:
    """A value as the file would spell it, kept short and without a URL's user and password."""
    match value:
        case bool() | float():
            return str(value).lower()
        case int():
            # str() refuses numbers of thousands of digits, which a hexadecimal number in the file can be.
            return str(value) if value.bit_length() <= 64 else "a number beyond 64 bits"
        case str():
            return json.dumps(_shorten(hide_secrets(value)), ensure_ascii=False)
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def spell_nearest(word: str, known: Iterable[str]) -> str:
    """Advice that names the known word nearest to ``word``, or all of them if none is near."""
    import difflib  # noqa: PLC0415 - only a mistake pays for this import

    candidates = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    nearest = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    if nearest:
        return f'did you mean "{by_lower[nearest[0]]}"?'
    return f"known are {', '.join(candidates)}" if candidates else "there is none"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
