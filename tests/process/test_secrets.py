"""What an executor can read of others' secrets: nothing in any process of ours, in whatever way it came to be."""

import os
import secrets
import signal
from pathlib import Path

import pytest

from operations_center.state_directory import SUPERVISOR
from tests.fleet import Fleet, wait_until
from tests.releases.staged import CONFIG as WITH_RELEASES
from tests.releases.staged import stage

CONFIG = """
[roles.goal]
backend = "spy"
[roles.test]
backend = "agent"
[backends.spy]
kind = "command"
argv = ["cat"]
max_concurrent = 1
[backends.agent]
kind = "command"
argv = ["sh", "-c", "echo $AGENT_KEY; exec sleep 1000"]
max_concurrent = 1
env = ["AGENT_KEY"]
[watchdog]
every = "500ms"
"""


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable of whoever starts the fleet."""
    value = f"s3cret-{secrets.token_hex(8)}"
    monkeypatch.setenv("AGENT_KEY", value)
    return value


def shown(secret: str) -> dict[int, str]:
    """Processes in which every program of the user can read the secret, and what they are called."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(path / name).read_bytes() for name in ("environ", "cmdline")]
        except OSError:
            continue
        if secret.encode() in b"".join(texts):
            found[int(path.name)] = texts[1].replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def printed(fleet: Fleet, run_id: str) -> str:
    return fleet.run("logs", run_id, expect=None).stdout


def start_task(fleet: Fleet, secret: str) -> str:
    """Its run, once its executor has told the secret."""
    task = fleet.run("task", "add", "a", "--kind", "test").stdout.strip()

    def look() -> str | None:
        runs = fleet.json("runs", "--open")["runs"]
        return next((run["run_id"] for run in runs if run["task_id"] == task), None)

    run_id: str = wait_until(look, "the run")
    wait_until(lambda: secret in printed(fleet, run_id), "its output")
    return run_id


def test_no_process_of_ours_shows_a_secret_however_it_was_started(fleet: Fleet, secret: str) -> None:
    fleet.configure(CONFIG)
    fleet.run("up", "--detach")
    run_id = start_task(fleet, secret)
    assert list(shown(secret).values()) == ["sleep 1000"]
    # A watcher that is forked again, and a supervisor that has executed itself again, have it as well.
    before = fleet.pulse(SUPERVISOR).process
    os.kill(fleet.pulse("test").process.pid, signal.SIGKILL)
    fleet.run("restart")
    assert fleet.pulse(SUPERVISOR).process == before
    fleet.run("stop", run_id)
    start_task(fleet, secret)
    assert list(shown(secret).values()) == ["sleep 1000"]
    fleet.run("down", "--now")
    assert shown(secret) == {}


def test_release_that_is_rolled_out_has_the_secrets_and_shows_none(fleet: Fleet, secret: str) -> None:
    old = 'argv = ["python3", "witness.py", "go"]'
    assert old in WITH_RELEASES
    fleet.configure(
        WITH_RELEASES.replace(old, 'argv = ["sh", "-c", "echo $AGENT_KEY; exec sleep 1000"]\nenv = ["AGENT_KEY"]')
    )
    fleet.up()
    commit = stage(fleet, 1)
    wait_until(lambda: fleet.json("status")["supervisor"]["release"] == commit, "the release")
    assert shown(secret) == {}
    start_task(fleet, secret)
    assert list(shown(secret).values()) == ["sleep 1000"]
