"""The benchmarks run and answer; what they measure is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import FIGURES

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
