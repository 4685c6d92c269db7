"""Run the demo: ``python -m demo``."""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from demo.fleet import DemoFailed, Fleet
from demo.story import Story
from demo.timeline import Part, Timeline


class Interrupted(BaseException):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Start a real fleet, let it work, kill -9 it piece by piece, and check its promises.",
    )
    parser.add_argument("--keep", action="store_true", help="keep the fleet's directory and say where it is")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write what was shown as a picture, too")
    wishes = parser.parse_args()
    _end_on_signals()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    fleet = Fleet(Path(tempfile.mkdtemp(prefix="operations center demo ")))
    timeline = Timeline()
    held = False
    try:
        fleet.configure()
        held = Story(fleet, timeline).tell()
        timeline.say()
        timeline.say(Part("Every promise held.", "good") if held else Part("A promise was broken.", "bad"))
        if wishes.svg:
            timeline.write_svg(wishes.svg)
    except DemoFailed as error:
        timeline.close()
        print(f"cannot go on: {error} (scripts/demo --keep keeps the logs)", file=sys.stderr)
    except Interrupted:
        timeline.close()
        print("interrupted: ending the fleet", file=sys.stderr)
        return 130
    finally:
        _ignore_signals()
        timeline.close()
        fleet.clean_up()
        if wishes.keep:
            print(f"kept: {fleet.root}")
        else:
            shutil.rmtree(fleet.root, ignore_errors=True)
    return 0 if held else 1


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
