"""When to ask a provider again."""

import email.utils
import math
import random
from collections.abc import Mapping

JITTER = 0.2
"""A pause is longer or shorter by up to this part, so that many jobs do not ask at once."""

LONGEST_WAIT_MS = 3_600_000
"""However long a provider tells us to wait."""


def pause_ms(asked: int, initial_ms: int, factor: float, max_ms: int, retry_after_ms: int | None) -> int:
    """The pause after the n-th (1-based) ask in a row that told nothing new.

    It grows by ``factor`` up to ``max_ms``, and is never shorter than what the provider has asked for.
    """
    try:
        grown = min(initial_ms * float(factor) ** max(asked - 1, 0), max_ms)
    except OverflowError:
        grown = max_ms
    paused = grown * random.uniform(1 - JITTER, 1 + JITTER)
    if retry_after_ms is None:
        return round(paused)
    wanted = min(retry_after_ms, LONGEST_WAIT_MS)
    return round(max(paused, wanted * random.uniform(1, 1 + JITTER)))


def retry_after_ms(headers: Mapping[str, str], now_ms: int) -> int | None:
    """What ``retry-after-ms`` or ``Retry-After`` say, in seconds or as a date (RFC 9110, 10.2.3); None if nothing."""
    for name, unit in (("retry-after-ms", 1), ("retry-after", 1000)):
        text = headers.get(name, "").strip()
        number = _number(text)
        if number is not None:
            return round(min(max(number * unit, 0.0), LONGEST_WAIT_MS))
    date = _date_ms(headers.get("retry-after", ""))
    return None if date is None else min(max(date - now_ms, 0), LONGEST_WAIT_MS)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date_ms(text: str) -> int | None:
    try:
        return round(email.utils.parsedate_to_datetime(text).timestamp() * 1000)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
