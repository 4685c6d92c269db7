"""A fleet runs on one configuration, which only a rollout changes: whatever becomes of the file meanwhile."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from operations_center.identity import is_alive
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import Fleet, is_dead, wait_until

CONFIG = f"""
[center]
cgroup = "off"

[roles.goal]
backend = "agent"

[roles.test]
backend = "agent"

[backends.agent]
kind = "command"
argv = ["{sys.executable}", "witness.py", "go"]
working_directory = "."
max_concurrent = 3
grace = "1s"

[watchdog]
every = "1s"
min_free_disk = "0B"
"""

BROKEN = "broken\n"


@pytest.fixture(autouse=True)
def configured(fleet: Fleet) -> None:
    fleet.configure(CONFIG)


def file_of(fleet: Fleet) -> Path:
    return fleet.root / "operations_center.toml"


def copies(fleet: Fleet) -> set[str]:
    return {fleet.pulse(name).config for name in (SUPERVISOR, WATCHDOG, "goal", "test")}


def replaced(fleet: Fleet, name: str) -> None:
    """Kill a watcher, and wait until the next one is ready."""
    old = fleet.pulse(name)
    os.kill(old.pid, signal.SIGKILL)
    wait_until(lambda: fleet.pulse(name).pid != old.pid and fleet.pulse(name).state == "ready", "the next watcher")


def one_run(fleet: Fleet, kind: str) -> str:
    begun = len(fleet.witnessed("begin"))
    fleet.add(1, kind)
    wait_until(lambda: len(fleet.witnessed("begin")) > begun, "its executor has begun")
    return fleet.witnessed("begin")[-1].run_id


def test_a_fleet_whose_file_is_broken_goes_on_and_is_steered_by_every_command(fleet: Fleet) -> None:
    fleet.up()
    before = copies(fleet)
    run_id = one_run(fleet, "goal")
    file_of(fleet).write_text(CONFIG + BROKEN)

    replaced(fleet, "goal")
    assert copies(fleet) == before
    status = fleet.json("status")
    assert (status["state"], status["config"]["problem"].split(":")[0]) == ("degraded", "line 21")
    assert "is broken: line 21" in fleet.run("status").stdout
    assert "is broken: line 21" in fleet.run("why").stdout
    assert "is broken: line 21" in fleet.run("doctor", expect=78).stdout
    for words in (["runs"], ["logs", run_id], ["explain", run_id], ["task", "list"], ["pause"], ["resume"], ["events"]):
        fleet.run(*words)
    fleet.run("restart", expect=78)
    fleet.run("up", expect=78)
    assert "is broken: line 21" in fleet.run("restart", "goal").stderr
    assert copies(fleet) == before
    fleet.run("stop", run_id)
    one_run(fleet, "test")

    file_of(fleet).unlink()
    assert fleet.json("status")["config"]["problem"] == "No such file or directory"
    fleet.run("down", "--now")
    assert all(is_dead(fleet.pulse(name)) for name in ("goal", "test", WATCHDOG, SUPERVISOR))
    fleet.run("status", expect=78)


def test_a_changed_file_counts_when_it_is_rolled_out_and_then_for_every_process(fleet: Fleet) -> None:
    supervisor = fleet.up()
    (before,) = copies(fleet)
    kept = one_run(fleet, "goal")
    file_of(fleet).write_text(CONFIG.replace('[roles.goal]\nbackend = "agent"', '[roles.goal]\nbackend = "other"'))
    with file_of(fleet).open("a") as file:
        file.write('\n[backends.other]\nkind = "command"\nargv = ["true"]\nmax_concurrent = 1\n')

    replaced(fleet, "test")
    assert copies(fleet) == {before}
    fleet.run("task", "add", "of a backend that the fleet does not know", "--backend", "other", expect=4)
    assert fleet.json("status")["config"]["changed_at"] is not None
    assert "has changed since" in fleet.run("why").stdout
    assert "has changed since" in fleet.run("doctor").stdout

    fleet.run("restart")
    (after,) = copies(fleet)
    assert after != before
    assert fleet.json("status")["config"]["changed_at"] is None
    assert supervisor.poll() is None
    assert [run["run_id"] for run in fleet.json("runs", "--open")["runs"]] == [kept]
    fleet.run("task", "add", "of one that it knows", "--backend", "other")

    # The next supervisor finds watchers of another configuration, and has them follow.
    file_of(fleet).write_text(CONFIG)
    supervisor.kill()
    supervisor.wait()
    fleet.up()
    wait_until(lambda: copies(fleet) == {before}, "all have the present configuration")


def test_a_configuration_that_cannot_start_is_gone_back_from(fleet: Fleet) -> None:
    supervisor = fleet.up("--only", "test")
    before = fleet.pulse(SUPERVISOR).config
    file_of(fleet).write_text(CONFIG.replace("[roles.test]", "[roles.other]"))
    complaint = fleet.run("restart", expect=1).stderr
    assert complaint.startswith("cannot restart the supervisor: ")
    wait_until(lambda: fleet.is_up(supervisor), "the fleet is up")
    assert (fleet.pulse(SUPERVISOR).config, fleet.pulse("test").config) == (before, before)


def test_a_copy_of_the_configuration_that_a_run_removes_or_changes_is_written_again(fleet: Fleet) -> None:
    fleet.up()
    copy = fleet.state.config_copy(fleet.pulse(SUPERVISOR).config)
    whole = copy.read_bytes()
    copy.write_text(BROKEN)
    wait_until(lambda: copy.read_bytes() == whole, "it is whole again")
    copy.unlink()
    replaced(fleet, "goal")
    assert copy.read_bytes() == whole


def test_a_watcher_whose_role_is_removed_begins_nothing_and_ends_with_its_runs(fleet: Fleet) -> None:
    fleet.up()
    kept = one_run(fleet, "test")
    watcher = fleet.pulse("test")
    file_of(fleet).write_text(CONFIG.replace("[roles.test]", "[roles.new]"))
    fleet.run("task", "add", "that waits for the role", "--kind", "test", "--priority", "low")
    fleet.run("task", "list")
    fleet.run("restart")
    wait_until(lambda: fleet.pulse("test").state == "draining", "the watcher learns of it")

    assert is_alive(watcher.process)
    (told,) = (each for each in fleet.json("status")["watchers"] if each["role"] == "test")
    assert (told["pid"], told["state"]) == (watcher.pid, "draining")
    assert "watcher test ends with its runs" in fleet.run("status").stdout
    fleet.run("stop", kept)
    wait_until(lambda: not is_alive(watcher.process), "it ends")
    assert {each["role"] for each in fleet.json("status")["watchers"]} == {"goal", "new"}


def test_a_run_of_a_removed_role_whose_watcher_is_killed_is_followed_by_the_watchdog(fleet: Fleet) -> None:
    fleet.up()
    run_id = one_run(fleet, "test")
    file_of(fleet).write_text(CONFIG.replace("[roles.test]", "[roles.new]"))
    fleet.run("restart")
    os.kill(fleet.pulse("test").pid, signal.SIGKILL)
    fleet.let_go()
    wait_until(lambda: fleet.json("runs", "--open")["runs"] == [], "the watchdog settles it")
    (run,) = (run for run in fleet.json("runs")["runs"] if run["run_id"] == run_id)
    assert run["outcome"] == "succeeded"


def test_a_fleet_whose_state_directory_is_edited_away_is_found_until_nothing_of_it_runs(fleet: Fleet) -> None:
    fleet.up()
    one_run(fleet, "goal")
    old, new = fleet.state.root, fleet.root / "elsewhere"
    file_of(fleet).write_text(CONFIG.replace("[center]", '[center]\nstate_dir = "elsewhere"'))

    status = fleet.json("status")
    assert (status["config"]["state_dir"], status["config"]["state_dir_of_file"]) == (str(old), str(new))
    for words, code in ((["restart"], 78), (["up"], 75), (["doctor"], 0)):
        done = fleet.run(*words, expect=code)
        assert str(new) in done.stdout + done.stderr or "state_dir has changed" in done.stderr
    told = fleet.run("down").stderr
    assert str(old) in told and str(new) in told
    # Its executor runs on, and a second fleet would not know of it.
    fleet.run("up", expect=75)
    fleet.run("down", "--now")
    assert not new.exists()
    assert fleet.json("status", expect=3)["config"]["state_dir"] == str(new)


def test_a_command_in_a_run_is_about_the_fleet_that_runs_it(fleet: Fleet, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a clone"
    elsewhere.mkdir()
    (elsewhere / "operations_center.toml").write_text(CONFIG)
    command = f"cd '{elsewhere}' && {sys.executable} -P -m operations_center task add --kind test 'from the run'"
    work = CONFIG.replace(f'["{sys.executable}", "witness.py", "go"]', json.dumps(["sh", "-c", command]))
    fleet.configure(work.replace('[roles.test]\nbackend = "agent"', '[roles.test]\nbackend = "idle"') + IDLE)
    fleet.up()
    file_of(fleet).write_text(BROKEN)
    fleet.run("task", "add", "parent")
    titles = {"parent", "from the run"}
    wait_until(lambda: {task["title"] for task in fleet.json("task", "list")["tasks"]} == titles, "both are there")
    assert os.listdir(elsewhere) == ["operations_center.toml"]


IDLE = """
[backends.idle]
kind = "command"
argv = ["true"]
max_concurrent = 1
"""
