"""Standard streams that are closed or full, and words that are no text."""

import shlex
import subprocess

import pytest

from tests.fleet import PATIENCE_S, Fleet

CONFIG = """
[roles.test]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 1
"""


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG)
    return fleet


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_hurt_no_command(fleet: Fleet, closed: str) -> None:
    fleet.add(1, "test")
    for words in ("status --json", "task list", "watch --role test --once", "up --exit-when-idle"):
        command = " ".join(shlex.quote(word) for word in fleet.argv()) + f" {words} {closed}"
        ended = subprocess.run(
            ["sh", "-c", command],
            env=fleet.environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert ended.returncode in (0, 3), (words, ended.stderr)


def test_an_output_that_cannot_be_written_is_told_in_one_line_and_is_no_defect(fleet: Fleet) -> None:
    for words in ("task add x --kind test", "status --json", "--help", "config show"):
        command = " ".join(shlex.quote(word) for word in fleet.argv()) + f" {words} >/dev/full"
        ended = subprocess.run(
            ["sh", "-c", command],
            env=fleet.environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert ended.returncode == 1
        assert ended.stderr.startswith("cannot go on: No space left on device")
        assert ended.stderr.count("\n") == 1


def test_a_working_directory_that_was_removed_hurts_no_command_or_is_named(fleet: Fleet) -> None:
    gone = fleet.root / "gone"
    config = f"--config {shlex.quote(str(fleet.root / 'operations_center.toml'))}"
    expected = [
        (f"status {config}", 3, ""),
        (f"task add x --kind test {config}", 0, ""),
        (f"up --exit-when-idle {config}", 0, ""),
        ("status --config operations_center.toml", 78, "cannot find operations_center.toml: the working directory was"),
        ("status", 78, "cannot find operations_center.toml: the working directory was removed"),
        ("init", 1, "cannot go on: the working directory was removed; go to another"),
    ]
    environment = {name: value for name, value in fleet.environment.items() if name != "OPERATIONS_CENTER_CONFIG"}
    for words, code, said in expected:
        gone.mkdir()
        command = " ".join(shlex.quote(word) for word in fleet.argv())
        ended = subprocess.run(
            ["sh", "-c", f"rmdir {shlex.quote(str(gone))}; exec {command} {words}"],
            cwd=gone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert ended.returncode == code, (words, ended.stdout, ended.stderr)
        assert ended.stderr.startswith(said), (words, ended.stderr)


def test_words_that_are_not_utf8_are_wrong_usage(fleet: Fleet) -> None:
    for words in ("stop", "task show", "runs --task", "events --run"):
        argv = [*fleet.argv(), *words.split()]
        refused = subprocess.run(
            [*argv, b"\xff"], env=fleet.environment, capture_output=True, timeout=2 * PATIENCE_S, check=False
        )
        assert refused.returncode == 2
        assert refused.stderr.startswith(b"cannot run `operations-center`")
