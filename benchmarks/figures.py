"""What a benchmark answers: rows of one figure, each beside its floor or peer, printed as a table and kept as JSON."""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """``quick``: tiny numbers, to see that it works; ``peers``: measure other programs, too (peers/setup.sh)."""

    quick: bool = False
    peers: bool = False

    def several(self, count: int) -> int:
        """How often something is tried."""
        return 2 if self.quick else count


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a figure. ``ours`` and ``beside`` (floors and peers, by name) are in ``unit``.

    ``target`` is a number in the same unit, ``target_is`` says where it comes from; it is an upper limit unless
    ``at_least``. ``spread`` tells how the samples of ``ours`` lie.
    """

    what: str
    unit: str
    ours: float
    beside: dict[str, float] = field(default_factory=dict)
    target: float | None = None
    target_is: str = ""
    at_least: bool = False
    spread: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """None for a row without a target."""
        if self.target is None:
            return None
        return self.ours >= self.target if self.at_least else self.ours <= self.target


def summary(values: Sequence[float]) -> dict[str, float]:
    """How many, and where they lie. p95 and p99 are samples, not interpolated."""
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "min": ordered[0],
        "p50": statistics.median(ordered),
        "p95": percentile(ordered, 95),
        "p99": percentile(ordered, 99),
        "max": ordered[-1],
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The sample that so many per cent do not pass (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__trunc__() - 1)]


def milliseconds(nanoseconds: Sequence[int]) -> list[float]:
    return [value / 1e6 for value in nanoseconds]


Measure = Callable[[Options], list[Row]]


def main(measure: Measure) -> None:
    """The command line of one benchmark file: measure, print, and with ``--json`` write."""
    module = sys.modules[measure.__module__]
    parser = argparse.ArgumentParser(description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny numbers, to see that it works")
    parser.add_argument("--peers", action="store_true", help="measure other programs, too (peers/setup.sh)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    # Whatever ends us, the fleets that we started end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begun = time.monotonic()
    rows = measure(Options(arguments.quick, arguments.peers))
    print(table(rows))
    if arguments.json:
        figure = as_json(Path(str(module.__file__)).stem, module.__doc__ or "", rows, time.monotonic() - begun)
        arguments.json.write_text(json.dumps(figure))


def as_json(name: str, how: str, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """``how`` is the benchmark's own docstring: its first line is the title, the rest how it is measured."""
    title, _, body = how.strip().partition("\n")
    return {
        "name": name,
        "title": title,
        "how": body.strip(),
        "seconds": round(seconds, 1),
        "rows": [_rounded(asdict(row) | {"met": row.met}) for row in rows],
    }


def table(rows: Sequence[Row]) -> str:
    lines = [(row.what, _said(row), _target(row), _beside(row)) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in lines
    )


def number(value: float) -> str:
    """As many digits as say something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _said(row: Row) -> str:
    return f"{number(row.ours)} {row.unit}".rstrip()


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    sign = "≥" if row.at_least else "≤"
    return f"{'met' if row.met else 'MISSED'} {sign} {number(row.target)}"


def _beside(row: Row) -> str:
    return "; ".join(f"{name} {number(value)}" for name, value in row.beside.items())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value
