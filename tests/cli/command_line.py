"""The command line in this process, and a ledger with runs in it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from operations_center import cli
from operations_center.admission import Limits
from operations_center.config import load_config
from operations_center.ledger import Admission
from operations_center.model import Outcome, Proof, Run
from operations_center.outcomes import Ending
from operations_center.state_directory import StateDirectory
from operations_center.wiring import Center, open_center


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line that an error is."""
        (line,) = self.err.splitlines()
        assert line.startswith("cannot "), line
        assert "defect" not in line
        return line


@dataclass(frozen=True)
class CommandLine:
    root: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def state(self) -> StateDirectory:
        return StateDirectory(self.root / ".operations_center")

    def __call__(self, *words: str, expect: int | None = 0) -> Answer:
        self.capsys.readouterr()
        code = cli.run(list(words))
        captured = self.capsys.readouterr()
        assert expect is None or code == expect, (words, code, captured)
        return Answer(code, captured.out, captured.err)

    @contextmanager
    def center(self) -> Iterator[Center]:
        center = open_center(load_config(self.root / "operations_center.toml", os.environ))
        try:
            yield center
        finally:
            center.close()

    def task(self, title: str = "a task") -> str:
        return self("task", "add", title).out.strip()

    def admit(self, task_id: str) -> Run:
        with self.center() as center:
            run = center.ledger.admit(
                Admission(
                    task_id, "goal", "agent", Limits(1000), center.host, center.me, grace_ms=1000, timeout_ms=None
                )
            )
            assert isinstance(run, Run)
            assert center.board.claim(task_id, run.run_id)
            return run

    def close(self, run: Run) -> None:
        with self.center() as center:
            ending = Ending(Outcome.SUCCEEDED, Proof.EXIT_RECORDED, "done", exit_code=0)
            assert center.settlement.end(run, ending, center.me)

    def closed_run(self) -> Run:
        run = self.admit(self.task())
        self.close(run)
        return run


@contextmanager
def following(line: CommandLine, *words: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "operations_center", *words], stdout=subprocess.PIPE, text=True, cwd=line.root
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()
