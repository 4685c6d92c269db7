"""Signals to processes of a fleet: what a run sends is refused, what a person sends is obeyed."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operations_center.identity import Process, is_alive, read_stat
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import PATIENCE_S, Fleet, wait_until
from tests.process.test_fork_server import fork_server_of

CONFIG = """
[roles.test]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["sh"]
working_directory = "."
max_concurrent = 3
[watchdog]
every = "500ms"
"""
STRIKE = """
import os, signal, sys, time
for pid in sys.argv[1:]:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(int(pid), number)
open("struck", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
"""

DISGUISE = """
import fcntl, os, signal, sys, time
pids = [int(each) for each in sys.argv[1:]]
for pid in pids:
    # The kernel sends the signal in its own name when there is something to read.
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
    fcntl.fcntl(reader, 10, signal.SIGTERM)  # F_SETSIG
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    os.write(writer, b"x")
if os.getuid() == 0:
    os.setresuid(65534, 0, 0)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
open("disguised", "w").close()
while not os.path.exists("go-on"):
    time.sleep(0.01)
"""


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG)
    (fleet.root / "strike.py").write_text(STRIKE)
    (fleet.root / "disguise.py").write_text(DISGUISE)
    yield fleet
    fleet.let_go()


def members(fleet: Fleet) -> list[Process]:
    processes = [fleet.pulse(name).process for name in (SUPERVISOR, "test", WATCHDOG)]
    server = fork_server_of(processes[0].pid)
    stat = read_stat(server)
    assert stat is not None
    return [*processes, Process(server, stat.start_ticks)]


def add(fleet: Fleet, script: str) -> str:
    return str(fleet.json("task", "add", script)["id"])


def is_done(fleet: Fleet, task_id: str) -> bool:
    return bool(fleet.json("task", "show", task_id)["state"] == "done")


def refused(fleet: Fleet) -> list[dict[str, Any]]:
    return [event for event in fleet.json("events")["events"] if event["kind"] == "signal.refused"]


def test_signals_of_a_run_end_nobody_and_are_noted(fleet: Fleet) -> None:
    fleet.up()
    before = members(fleet)
    pids = " ".join(str(process.pid) for process in before)

    living = add(fleet, f"exec python3 strike.py {pids}")
    wait_until((fleet.root / "struck").exists, "an executor that lives on has sent them")
    fleet.let_go()
    wait_until(lambda: is_done(fleet, living), "it ends")
    disguised = add(fleet, f"exec python3 disguise.py {pids}")
    wait_until((fleet.root / "disguised").exists, "one has sent them in the kernel's name, and with another user id")
    (fleet.root / "go-on").touch()
    wait_until(lambda: is_done(fleet, disguised), "it ends")
    gone = add(fleet, f"for s in TERM INT HUP; do env kill -$s {pids}; done")
    wait_until(lambda: is_done(fleet, gone), "senders that end at once have sent them")
    wait_until(lambda: is_done(fleet, add(fleet, "true")), "the fleet goes on")

    assert [process for process in before if not is_alive(process)] == []
    assert {event["data"]["signal"] for event in refused(fleet)} <= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    (run_id,) = {run["run_id"] for run in fleet.json("runs", "--task", living)["runs"]}
    assert run_id in {event["data"]["run_id"] for event in refused(fleet)}


def test_a_fleet_heals_when_a_run_kills_all_that_watches(fleet: Fleet) -> None:
    supervisor = fleet.up()
    before = members(fleet)
    add(fleet, "kill -9 " + " ".join(str(process.pid) for process in before[1:]))
    wait_until(lambda: not any(map(is_alive, before[1:])), "they are killed")
    wait_until(lambda: is_done(fleet, add(fleet, "true")), "others have come")
    assert supervisor.poll() is None


def test_a_person_stops_a_fleet_by_the_kill_of_a_shell_and_a_service_would_come_back(fleet: Fleet) -> None:
    supervisor = fleet.up()
    add(fleet, "touch struck; while [ ! -e go ]; do sleep 0.01; done")
    wait_until((fleet.root / "struck").exists, "a run executes")
    # As a shell of somebody else: not this process, which has started the supervisor.
    with subprocess.Popen(
        ["sh", "-c", 'kill "$1"; read -r _', "sh", str(supervisor.pid)], stdin=subprocess.PIPE
    ) as shell:
        assert supervisor.wait(PATIENCE_S) == 128 + signal.SIGTERM
        shell.communicate(b"\n")


def test_down_ends_a_supervisor_with_exit_code_0(fleet: Fleet) -> None:
    supervisor = fleet.up()
    fleet.run("down")
    assert supervisor.wait(PATIENCE_S) == 0


def test_down_does_not_wait_for_a_run_that_holds_its_lock(fleet: Fleet) -> None:
    supervisor = fleet.up()
    add(
        fleet,
        f"flock {shlex.quote(str(fleet.state.root))} sh -c 'touch struck; while [ ! -e go ]; do sleep 0.01; done'",
    )
    wait_until((fleet.root / "struck").exists, "a run holds the lock")
    fleet.run("down", "--now", "--timeout", "50s")
    assert supervisor.poll() is not None
    assert [run["outcome"] for run in fleet.json("runs")["runs"]] == ["stopped"]


def test_down_inside_a_run_is_refused(fleet: Fleet) -> None:
    supervisor = fleet.up()
    down = " ".join(shlex.quote(word) for word in fleet.argv("down", "--now"))
    task_id = add(fleet, f"{down} 2>told; test $? = 1")
    wait_until(lambda: is_done(fleet, task_id), "it is refused")
    assert (fleet.root / "told").read_text().startswith("cannot stop the fleet: this process belongs to its run r1-")
    assert supervisor.poll() is None


def test_no_title_of_the_fleet_tells_more_than_what_it_is(fleet: Fleet) -> None:
    supervisor = fleet.up()
    for process in members(fleet):
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        assert title.startswith("oc-")
        assert Path(f"/proc/{process.pid}/comm").read_text().strip() == title
        assert str(fleet.root).encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    started = fleet.pulse(SUPERVISOR).started_at
    supervisor.send_signal(signal.SIGUSR2)
    wait_until(lambda: fleet.pulse(SUPERVISOR).started_at != started, "the next image")
    assert Path(f"/proc/{supervisor.pid}/cmdline").read_bytes().rstrip(b"\0") == b"oc-sup"


def test_a_detached_fleet_takes_a_hang_up_for_a_reload(fleet: Fleet) -> None:
    pid = int(fleet.json("up", "--detach")["pid"])
    started, watcher = fleet.pulse(SUPERVISOR).started_at, fleet.pulse("test").process
    config = fleet.root / "operations_center.toml"
    right = config.read_text()

    config.write_text(right + "[roles.goal]\nbackend = 7\n")
    os.kill(pid, signal.SIGHUP)
    log = fleet.state.log(SUPERVISOR)
    wait_until(lambda: "cannot" in log.read_text(), "a broken configuration is refused")
    assert fleet.pulse("test").process == watcher

    config.write_text(right + '[roles.goal]\nbackend = "agent"\n')
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: fleet.pulse(SUPERVISOR).started_at != started, "the next image")
    wait_until(lambda: fleet.pulse("test").process != watcher, "its watcher is another")
    wait_until(lambda: fleet.json("status", expect=None)["state"] == "up", "all are up, the new role too")
    assert fleet.pulse(SUPERVISOR).pid == pid
    fleet.run("down")
