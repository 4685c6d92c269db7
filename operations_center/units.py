"""Durations and sizes as people write them, and the whole numbers that the program counts in."""

import re

LONGEST_DURATION_MS = 3650 * 86_400_000

_DURATION = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)")
_DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}

_SIZE = re.compile(r"([0-9]{1,15})(B|[kK]B|MB|GB|TB|KiB|MiB|GiB|TiB)")
_SIZE_UNITS = {
    "TiB": 1 << 40,
    "TB": 10**12,
    "GiB": 1 << 30,
    "GB": 10**9,
    "MiB": 1 << 20,
    "MB": 10**6,
    "KiB": 1 << 10,
    "kB": 10**3,
    "KB": 10**3,
    "B": 1,
}
_LARGEST_SIZE = (1 << 63) - 1


def parse_duration(text: str) -> int:
    """Milliseconds of ``"500ms"``, ``"30s"``, ``"5m"``, ``"2h"``, ``"7d"``; ValueError says what to write."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text[:40]}" is not a duration (write a whole number and a unit: 500ms, 30s, 5m, 2h or 7d)')
    milliseconds = int(match[1]) * _DURATION_UNITS[match[2]]
    if milliseconds > LONGEST_DURATION_MS:
        raise ValueError(f'"{text}" is too long a duration (write at most 3650d)')
    return milliseconds


def format_duration(milliseconds: int) -> str:
    """The shortest text that ``parse_duration`` reads as the same number of milliseconds."""
    if milliseconds == 0:
        return "0s"
    return _format(milliseconds, _DURATION_UNITS)


def parse_size(text: str) -> int:
    """Bytes of ``"2GiB"`` (powers of 1024) or ``"500MB"`` (powers of 1000); ValueError says what to write."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text[:40]}" is not a size (write a whole number and a unit: 500MB, 512MiB or 2GiB)')
    size = int(match[1]) * _SIZE_UNITS[match[2]]
    if size > _LARGEST_SIZE:
        raise ValueError(f'"{text}" is too large a size (write less than 8388608TiB)')
    return size


def format_size(size: int) -> str:
    """The text with the largest unit that ``parse_size`` reads as the same number of bytes."""
    if size == 0:
        return "0B"
    return _format(size, _SIZE_UNITS)


def _format(number: int, units: dict[str, int]) -> str:
    unit = next(unit for unit, factor in units.items() if number % factor == 0)
    return f"{number // units[unit]}{unit}"
