"""Generate a small package, and run its unit tests with ``python -m unittest`` in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from witness import result, witnessed

LIFE = '''\
"""Conway's game of life on an endless board."""

from collections import Counter


def step(cells):
    around = Counter((x + i, y + j) for x, y in cells for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)
    return {cell for cell, count in around.items() if count == 3 or (count == 2 and cell in cells)}


def after(cells, steps):
    for _ in range(steps):
        cells = step(cells)
    return cells
'''

TEST_LIFE = """\
import unittest

from life import after, step

GLIDER = {(1, 0), (2, 1), (0, 2), (1, 2), (2, 2)}
R_PENTOMINO = {(1, 0), (2, 0), (0, 1), (1, 1), (1, 2)}


class Known(unittest.TestCase):
    def test_a_block_stays(self):
        self.assertEqual(step({(0, 0), (0, 1), (1, 0), (1, 1)}), {(0, 0), (0, 1), (1, 0), (1, 1)})

    def test_a_blinker_blinks(self):
        self.assertEqual(step({(0, 0), (1, 0), (2, 0)}), {(1, -1), (1, 0), (1, 1)})
"""

CASES = """
    def test_a_glider_has_flown_{n}(self):
        self.assertEqual(after(GLIDER, {steps}), {{(x + {n}, y + {n}) for x, y in GLIDER}})

    def test_the_r_pentomino_settles_{n}(self):
        self.assertEqual(len(after(R_PENTOMINO, 1103)), 116)
"""


def run_tests() -> int:
    task = json.loads(Path(os.environ["OPERATIONS_CENTER_TASK_FILE"]).read_text())
    Path("life.py").write_text(LIFE)
    cases = "".join(CASES.format(n=n, steps=4 * n) for n in range(1, int(task["body"]) + 1))
    Path("test_life.py").write_text(TEST_LIFE + cases)
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "-v", "test_life"], stderr=subprocess.PIPE, text=True, check=False
    )
    print(done.stderr, flush=True)
    ran = re.search(r"Ran (\d+) tests in ([\d.]+)s", done.stderr)
    if done.returncode or ran is None:
        return 1
    result(f"{ran[1]} unit tests passed in {ran[2]} s")
    return 0


witnessed(run_tests)
