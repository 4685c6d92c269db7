"""No command lets a terminal obey what somebody else has written."""

import os
import pty
import re
import sqlite3
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from operations_center import cli
from operations_center.admission import Limits
from operations_center.cli import COMMANDS
from operations_center.cli.ledger import command as ledger
from operations_center.cli.task import command as task
from operations_center.config import write_template
from operations_center.ledger import Admission, Pause
from operations_center.model import Outcome, Proof, Run
from operations_center.outcomes import Ending
from operations_center.releases.records import ReleaseState
from tests.cli.command_line import CommandLine
from tests.fleet import PATIENCE_S

EVIL = "\x1b]0;OWNED\x07 \x9b2J \x1b[8m \u202e\u2066 \r\n \u2028 \u200b \U000e0041"
EVIL_NAME = "\x1b]0;OWNED\x07\x9b2J\u202e\r\n\u2028"
IN_TOML = "".join(f"\\U{ord(character):08x}" for character in EVIL)

COLOUR = re.compile(r"\x1b\[[0-9;]*m")

USES: dict[str, tuple[str, ...]] = {
    "init": ("init {name}", "init {file}"),
    "up": ("up --only {evil}", "up --config {file}"),
    "down": ("down", "down {evil}"),
    "restart": ("restart {evil}", "restart"),
    "status": ("status",),
    "watch": ("watch --role {evil}",),
    "watchdog": ("watchdog {evil}", "watchdog --config {file}"),
    "reconcile": ("reconcile --dry-run", "reconcile", "reconcile {evil}", "reconcile --run {evil}"),
    "runs": ("runs", "runs --open", "runs --task {evil}", "runs --limit {evil}"),
    "explain": ("explain {open}", "explain {closed}", "explain {evil}"),
    "why": ("why", "why {evil}"),
    "logs": ("logs {open}", "logs {evil}"),
    "stop": ("stop {evil}", "stop {closed} --reason {evil}", "stop {open} --reason {evil}"),
    "resolve": ("resolve {evil} --as succeeded --reason {evil}", "resolve {open} --as {evil} --reason {evil}"),
    "task add": ("task add {evil} --kind {evil}", "task add x --backend {evil}", "task add x --body-file {file}"),
    "task list": ("task list",),
    "task show": ("task show {task}", "task show {evil}"),
    "task edit": ("task edit {task} --title {evil} --kind {evil}", "task edit {evil} --title x"),
    "task cancel": ("task cancel {task}", "task cancel {evil}"),
    "task retry": ("task retry {task}", "task retry {evil}"),
    "task import": ("task import {file}", "task import {name}"),
    "events": ("events", "events --run {evil}", "events --since {evil}"),
    "pause": ("pause goal --reason {evil}", "pause {evil}"),
    "resume": ("resume goal", "resume {evil}"),
    "rollback": ("rollback {evil}",),
    "ledger verify": ("ledger verify",),
    "ledger backup": ("ledger backup {name}", "ledger backup {file}/x"),
    "ledger restore": ("ledger restore {file}", "ledger restore {name}"),
    "ledger new": ("ledger new", "ledger new --config {file}"),
    "ledger prune": ("ledger prune --older-than {evil}", "ledger prune --older-than 1d"),
    "pull": ("pull", "pull --check"),
    "releases": ("releases",),
    "doctor": ("doctor", "doctor --config {file}"),
    "config check": ("config check", "config check --config {file}", "config check --config {broken}"),
    "config show": ("config show", "config show --config {name}"),
    "unit": ("unit", "unit {evil}"),
}
"""By command, ways of using it in which something of somebody else is printed."""


@pytest.fixture
def hostile(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A directory in which everything that can be is hostile."""
    root = tmp_path / EVIL_NAME
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("OPERATIONS_CENTER_CONFIG", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    write_template(root)
    config = (root / "operations_center.toml").read_text()
    subprocess.run(["git", "init", "-q", "clone"], cwd=root, check=True)
    (root / "operations_center.toml").write_text(
        re.sub(r"(?m)^argv = .*", lambda _: f'argv = ["cat", "{IN_TOML}"]', config)
        + f'\n[code_pull]\nrepository = "clone"\nremote = "{IN_TOML}"\n'
    )
    (root / "broken").write_text(f'[roles.goal]\nbackend = "{IN_TOML}"\n["{IN_TOML}"]\nx = "{IN_TOML}"\n')
    (root / f"file{EVIL_NAME}").write_text(f'{{"title": {{}}, "{IN_TOML[:10]}": 1}}\n')
    return CommandLine(root, capsys)


def fill(line: CommandLine) -> dict[str, str]:
    """Write hostile texts wherever the ledger, the board and a run's directory have room; the ids to ask for."""
    task_id = line.task(EVIL)
    line("task", "edit", task_id, "--kind", EVIL, "--body", EVIL)
    with line.center() as center:
        runs = []
        for each in (line.task(), line.task()):
            admission = Admission(
                each, "goal", "agent", Limits(1000), center.host, center.me, grace_ms=1, timeout_ms=None
            )
            run = center.ledger.admit(replace(admission, role=EVIL, backend=EVIL))
            assert isinstance(run, Run)
            runs.append(run)
        center.settlement.end(runs[1], Ending(Outcome.FAILED, Proof.EXIT_RECORDED, EVIL, exit_code=1), center.me)
        center.ledger.pause(Pause("agent", "watchdog", EVIL, 1))
        center.ledger.note(EVIL, {EVIL: EVIL, "reason": EVIL})
        center.releases.record("a" * 40, ReleaseState.BAD, EVIL)
        center.state.run(runs[0].run_id).mkdir(parents=True)
        for stream in ("stdout", "stderr"):
            (center.state.run(runs[0].run_id) / stream).write_text(EVIL)
    with sqlite3.connect(line.state.ledger) as ledger_file:
        ledger_file.execute("UPDATE tasks SET reason = ? WHERE task_id = ?", (EVIL, task_id))
    ledger_file.close()
    return {"task": task_id, "open": runs[0].run_id, "closed": runs[1].run_id}


def assert_harmless(printed: str) -> None:
    for line in COLOUR.sub("", printed).split("\n"):
        assert line.replace("\t", "").isprintable(), repr(line)


def test_nothing_is_printed_past_the_function_that_makes_it_harmless() -> None:
    printing = re.compile(r"click\.(echo|secho|style)|\bprint\(|sys\.std(out|err)\.write")
    files = [path for path in Path(cli.__file__).parent.rglob("*.py") if printing.search(path.read_text())]
    # The second prints JSON.
    assert {path.name for path in files} == {"output.py", "common.py"}


def test_every_command_is_tried() -> None:
    groups = {"task": task, "ledger": ledger}
    verbs = {f"{name} {verb}" for name, group in groups.items() for verb in group.commands}
    assert set(USES) == (set(COMMANDS) - {*groups, "config"}) | verbs | {"config check", "config show"}


@pytest.mark.parametrize("use", [use for uses in USES.values() for use in uses])
def test_no_command_has_a_terminal_obey_anything(
    hostile: CommandLine, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    files = {"file": f"file{EVIL_NAME}", "name": f"new{EVIL_NAME}", "broken": "broken", "evil": EVIL}
    texts = files | fill(hostile)
    words = [word.format(**texts) for word in use.split(" ")]
    answer = hostile(*words, expect=None)
    assert_harmless(answer.out + answer.err)
    assert "defect" not in answer.err
    assert answer.out + answer.err
    as_json = hostile(*words, "--json", expect=None)
    assert_harmless(as_json.err)
    assert as_json.out.isascii()
    assert_harmless(as_json.out)


def test_the_configuration_that_is_shown_is_that_of_the_file(hostile: CommandLine) -> None:
    shown = tomllib.loads(hostile("config", "show").out)
    assert shown["backends"]["agent"]["argv"] == ["cat", EVIL]


@pytest.mark.parametrize("words", ["up --exit-when-idle", "watch --role goal --once", "watchdog --once"])
def test_no_log_on_a_terminal_has_it_obey_anything(hostile: CommandLine, words: str) -> None:
    fill(hostile)
    master, slave = pty.openpty()
    command = [sys.executable, "-P", "-m", "operations_center", *words.split()]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=hostile.root) as process:
        os.close(slave)
        printed = b""
        try:
            while chunk := os.read(master, 4096):
                printed += chunk
        except OSError:  # EIO: nobody has the terminal any more
            pass
        os.close(master)
        process.wait(PATIENCE_S)
    assert printed
    assert_harmless(printed.replace(b"\r\n", b"\n").decode())
