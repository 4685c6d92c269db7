"""The benchmarks run and answer, and their page is made of what they answered; no figure is a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.__main__ import FIGURES
from benchmarks.figures import Row, as_json, percentile

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FIGURES)
def test_a_benchmark_runs_and_keeps_its_rows(name: str, tmp_path: Path) -> None:
    answer = tmp_path / "figure.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(answer)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figure = json.loads(answer.read_text())
    assert figure["name"] == name
    assert figure["title"] and figure["how"]
    assert all(row["ours"] >= 0 and row["what"] for row in figure["rows"])
    assert [row["what"] for row in figure["rows"] if "slots held" in row["what"] and not row["met"]] == []


def test_the_page_tells_every_row_its_target_and_where_the_time_of_a_miss_goes() -> None:
    rows = [
        Row("quick enough", "ms", 2.0, {"floor": 1.0}, 3.0),
        Row("too slow", "ms", 4.0, {"floor": 1.0}, 3.0, "3 × the floor"),
        Row("often enough", "/s", 1234.0, {}, 1000.0, at_least=True),
    ]
    results = {"machine": {"kernel": "6.1"}, "figures": [as_json("kills", "Kills.\n\nCounted.", rows, 1.0)]}
    made = page.make_page(results, "# Kept by hand\n\n## kills\n\nIn the scans.\n")
    assert "2 of 3 targets are met. Missed: too slow." in made
    assert "| quick enough | 2.00 ms | ≤ 3.00: met | floor 1.00 |" in made
    assert "| too slow | 4.00 ms | ≤ 3.00 (3 × the floor): **missed** | floor 1.00 |" in made
    assert "| often enough | 1,234 /s | ≥ 1,000: met |  |" in made
    assert "**Where the time goes.** In the scans." in made
    assert "| kernel | 6.1 |" in made


def test_the_page_is_made_of_the_results_that_are_kept() -> None:
    if not page.RESULTS.exists():
        pytest.skip("no results are kept: scripts/bench writes them")
    made = page.make_page(json.loads(page.RESULTS.read_text()), page.EXPLANATIONS.read_text())
    assert page.PAGE.read_text() == made


def test_a_percentile_is_a_sample_that_so_many_do_not_pass() -> None:
    values = [float(number) for number in range(1, 201)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [1, 100, 190, 198, 200]
    assert percentile([7.0], 99) == 7
