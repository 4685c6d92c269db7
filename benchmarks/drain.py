"""24 tasks of 0.4 s over two roles through ``max_concurrent = 2``: ``up --exit-when-idle``, whole process."""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fleet import Fleet
from tests.process.test_fleet import CONFIG

IDEAL_S = 24 * 0.4 / 2


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="oc bench ") as name:
        fleet = Fleet(Path(name))
        fleet.configure(CONFIG.format(python=sys.executable, seconds=0.4))
        fleet.add(12, "goal")
        fleet.add(12, "test")
        begun = time.perf_counter()
        fleet.run("up", "--exit-when-idle")
        took = time.perf_counter() - begun
        ends = len(fleet.witnessed("end"))
        print(f"{ends} runs, at most {fleet.most_at_once()} at once, {took:.2f} s = {took / IDEAL_S:.2f} × {IDEAL_S} s")


if __name__ == "__main__":
    main()
