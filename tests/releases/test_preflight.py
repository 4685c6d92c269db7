"""Code that cannot work is refused before a watcher of the fleet runs it, and its reason is kept."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from operations_center.identity import is_alive
from operations_center.pulse import read_pulse
from operations_center.releases.rehearsal import ROLE
from operations_center.releases.staging import BadRelease
from operations_center.state_directory import StateDirectory
from tests.fleet import wait_until
from tests.releases.clones import PACKAGE, Clones

ENDS = "        import os; os._exit(3)\n"
HANGS = "        import time; time.sleep(1000)\n"

RUN_OF_WATCHER = "        lock_file = self._center.state.watcher_lock(self._role.name)\n"
RUN_OF_SUPERVISOR = "        lock_file = self._center.state.supervisor_lock\n"


def refusal(clones: Clones, commit: str) -> str:
    with pytest.raises(BadRelease):
        clones.stage()
    state, reason = clones.known()[commit]
    assert state == "bad"
    assert reason is not None
    assert reason == reason.strip()
    assert len(reason.splitlines()) == 1
    assert clones.on_disk() == set()
    assert clones.is_left() == []
    assert not (clones.state / "rehearsal").exists()
    return reason


def test_code_that_works_is_staged_and_nothing_of_its_rehearsal_is_left(clones: Clones) -> None:
    commit = clones.push_own_code()
    assert clones.stage().release.commit == commit
    assert not (clones.state / "rehearsal").exists()
    assert clones.is_left() == []
    with clones.center() as center:
        assert center.ledger.sizes()[0] == 0


def test_code_in_a_source_directory_is_found(clones: Clones) -> None:
    clones.push_own_code()
    (clones.author / "src").mkdir()
    clones.git(clones.author, "mv", "operations_center", "src/operations_center")
    (clones.author / "src/operations_center/watcher.py").write_text("x = (")
    assert "src/operations_center/watcher.py" in refusal(clones, clones.push({}))


def test_a_syntax_error_is_refused_with_its_line(clones: Clones) -> None:
    commit = clones.push_own_code({"watchdog.py": ("class Watchdog", "clas Watchdog")})
    reason = refusal(clones, commit)
    assert reason.startswith("imports: cannot import operations_center.")
    assert "watchdog.py, line" in reason


def test_a_module_that_is_missing_is_refused(clones: Clones) -> None:
    commit = clones.push_own_code({"views/status.py": ("import ", "import no_such_module, ")})
    assert "no_such_module" in refusal(clones, commit)


def test_code_that_does_not_know_the_configuration_in_force_is_refused(clones: Clones) -> None:
    renamed = {"config/sections.py": ("    argv: Command\n", "    command: Command\n")}
    commit = clones.push_own_code(renamed | {"config/loading.py": ("backend.argv", "backend.command")})
    reason = refusal(clones, commit)
    assert reason.startswith("config check: ")
    assert str(clones.config_file) in reason


def test_code_with_a_newer_schema_of_the_ledger_is_refused(clones: Clones) -> None:
    clones.push_own_code()
    commit = clones.push({"operations_center/store/migrations/0002_more.sql": "CREATE TABLE more (x INTEGER);\n"})
    assert refusal(clones, commit).startswith("schema: ")


@pytest.mark.parametrize(
    ("file", "before", "step"),
    [
        ("watcher.py", ENDS, "rehearsal: up: "),
        ("watcher.py", HANGS, "rehearsal: up: the whole of it was not done within "),
        ("supervisor/__init__.py", ENDS, "rehearsal: up: "),
        ("supervisor/__init__.py", "        if self._wishes.lock is not None:\n    " + ENDS, "rehearsal: restart: "),
    ],
    ids=["watcher ends", "watcher hangs", "supervisor ends", "supervisor ends when it executes itself anew"],
)
def test_code_whose_fleet_cannot_live_is_refused(
    clones: Clones, monkeypatch: pytest.MonkeyPatch, file: str, before: str, step: str
) -> None:
    if file == "watcher.py":
        # A fleet that never gets ready need not be waited for any longer.
        monkeypatch.setattr("operations_center.releases.rehearsal.WITHIN_S", 6.0)
    line = RUN_OF_WATCHER if file == "watcher.py" else RUN_OF_SUPERVISOR
    commit = clones.push_own_code({file: (line, before + line)})
    assert refusal(clones, commit).startswith(step)


def test_code_that_cannot_run_a_task_is_refused(clones: Clones) -> None:
    commit = clones.push_own_code({"keeper/script.py": ('SHELL = "/bin/sh"', 'SHELL = "/bin/false"')})
    # Ends that are no fault of the task do not block it for long.
    assert refusal(clones, commit).startswith("rehearsal: its task ")


def test_code_whose_keeper_hangs_is_refused_and_not_even_the_keeper_is_left(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations_center.releases.rehearsal.WITHIN_S", 10.0)
    first = (PACKAGE / "keeper/keeper.sh").read_text().splitlines()[0]
    commit = clones.push_own_code({"keeper/keeper.sh": (first, f"touch '{clones.root}/keeps'; sleep 1000\n{first}")})
    # On a machine that has much else to do it may not even come to the end.
    reason = refusal(clones, commit)
    assert re.match(r"rehearsal: (its task 'before the restart' was still running|.* was not done within)", reason)
    assert (clones.root / "keeps").exists()


def test_the_rehearsal_stays_away_from_the_fleet_that_it_is_made_for(
    clones: Clones, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And from systemd, whatever the environment says of them."""
    monkeypatch.setenv("OPERATIONS_CENTER_CENTER__STATE_DIR", str(tmp_path / "another"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    commit = clones.push_own_code()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        staged = clones.stage()
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
    assert staged.release.commit == commit
    with clones.center() as center:
        assert center.state.root == tmp_path / "another"
        kinds = {event.kind for event in center.ledger.events()}
    assert kinds == {"release.fetched", "release.staged"}


def test_a_fleet_whose_rehearsal_was_killed_is_ended_by_the_next_stage(clones: Clones) -> None:
    commit = clones.push_own_code()
    pid = os.fork()
    if pid == 0:
        clones.stage()
    rehearsal = StateDirectory(clones.state / "rehearsal")
    wait_until(lambda: read_pulse(rehearsal.pulse(ROLE)), "a watcher of the rehearsal")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pulse = read_pulse(rehearsal.pulse(ROLE))
    assert pulse is not None
    assert clones.known() == {}
    # Another commit: nothing of the first is of any use to it.
    another = clones.push({"program": "two"})
    assert clones.stage().release.commit == another
    assert not is_alive(pulse.process)
    assert clones.is_left() == []
    assert not rehearsal.root.exists()
    assert clones.on_disk() == {another}
    assert commit not in clones.known()
