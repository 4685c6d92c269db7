"""Run the soak: ``python -m soak``."""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from soak.fleet import Fleet
from soak.journal import Journal
from soak.report import explanation, summary_lines
from soak.soak import Soak, SoakFailed, Summary


class Interrupted(BaseException):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="A real fleet under random kills and stops; an observer checks its promises all the while.",
    )
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="how long the storm lasts (60)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="of every decision (a random one)")
    parser.add_argument("--keep", action="store_true", help="keep the fleet's directory also without a breach")
    wishes = parser.parse_args()
    seed = random.randrange(10**6) if wishes.seed is None else wishes.seed
    _end_on_signals()
    fleet = Fleet(Path(tempfile.mkdtemp(prefix="operations center soak ")))
    print(f"soak of {wishes.seconds:g} s, seed {seed}, in {fleet.root}", flush=True)
    begun = time.monotonic()
    summary = None
    try:
        summary = Soak(fleet, wishes.seconds, seed).run()
        print(f"over after {time.monotonic() - begun:.0f} s", flush=True)
        _tell(fleet, summary)
    except (SoakFailed, TimeoutError) as error:
        print(f"cannot go on: {error}", file=sys.stderr)
    except Interrupted:
        print("interrupted: ending the fleet", file=sys.stderr)
        return 130
    finally:
        _ignore_signals()
        fleet.clean_up()
        if wishes.keep or summary is None or summary.breaches:
            print(f"kept: {fleet.root}")
        else:
            shutil.rmtree(fleet.root, ignore_errors=True)
    return 0 if summary is not None and not summary.breaches else 1


def _tell(fleet: Fleet, summary: Summary) -> None:
    for line in summary_lines(summary):
        print(line)
    journal = Journal(fleet.root / "journal.jsonl")
    for breach in summary.breaches:
        print()
        for line in explanation(breach, summary, journal):
            print(line)


def _end_on_signals() -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _ignore_signals() -> None:
    """The end is in order, however impatient somebody is."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
