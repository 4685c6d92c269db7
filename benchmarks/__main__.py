"""All figures, one after the other, each in a process of its own.

A run of all writes benchmarks/results/latest.json and makes docs/benchmarks.md of it; one of some, or a quick one,
writes only what --json names.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.figures import Options
from benchmarks.machine import describe_machine

FIGURES = (
    "keeper_killed",
    "executor_ends",
    "next_in_line",
    "watcher_killed",
    "cold_start",
    "first_instruction",
    "admission",
    "reconcile",
    "idle_fleet",
)
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Exit code 1 if one of them could not be measured."""
    arguments = _parse()
    machine = describe_machine()
    figures = [run(name, Options(arguments.quick, arguments.peers)) for name in arguments.only or FIGURES]
    results = {"schema": 1, "machine": machine, "peers": arguments.peers, "figures": [each for each in figures if each]}
    if arguments.json:
        page.write_json(arguments.json, results)
    elif not arguments.only and not arguments.quick and all(figures):
        page.write_json(page.RESULTS, results)
        page.PAGE.write_text(page.make_page(results, page.EXPLANATIONS.read_text()))
        print(f"\nwritten: {page.RESULTS.relative_to(ROOT)}, {page.PAGE.relative_to(ROOT)}")
    return 0 if all(figures) else 1


def run(name: str, options: Options) -> dict[str, Any] | None:
    """The figure as JSON; None where it could not be measured, and said why."""
    print(f"\n{name}", flush=True)
    wanted = {"--quick": options.quick, "--peers": options.peers}
    flags = [flag for flag, is_wanted in wanted.items() if is_wanted]
    with tempfile.NamedTemporaryFile() as answer:
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags, "--json", answer.name]
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            print(f"cannot measure {name}: it ended with {done.returncode}, see above", file=sys.stderr)
            return None
        print(f"({time.monotonic() - begun:.0f} s)", flush=True)
        figure: dict[str, Any] = json.loads(Path(answer.name).read_text())
        return figure


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", action="store_true", help="measure other programs, too (benchmarks/peers/setup.sh)")
    parser.add_argument("--only", action="append", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="tiny numbers, to see that it works")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
