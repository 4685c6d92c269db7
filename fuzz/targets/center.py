"""A center in a sandbox, and runs in it as a dead watcher leaves them."""

import subprocess
from pathlib import Path

from fuzz.sandbox import Sandbox
from operations_center.admission import Limits
from operations_center.boards.local import NewTask
from operations_center.config import Config, load_config
from operations_center.identity import Process
from operations_center.ledger import Admission
from operations_center.model import Run, RunState
from operations_center.wiring import Center, open_center

CONFIG = """
[center]
cgroup = "off"
[roles.goal]
backend = "agent"
max_attempts = 1000000
[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 1000000

"""


def configuration(sandbox: Sandbox) -> Config:
    file = sandbox.inside / "operations_center.toml"
    file.write_text(CONFIG)
    return load_config(file, {})


def new_center(sandbox: Sandbox) -> Center:
    """A center with an empty ledger; what a power cut would take from it matters to nobody here."""
    center = open_center(configuration(sandbox))
    center.store.execute("PRAGMA synchronous=OFF", ())
    return center


def dead_process() -> Process:
    """A process that has ended."""
    process = subprocess.Popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE)
    known = Process.of(process.pid)
    process.communicate(b"\n")
    return known


def admit(center: Center, watcher: Process) -> Run:
    """A run that a watcher has reserved for a new task."""
    (task_id,) = center.board.add([NewTask("a task", "goal")])
    admission = Admission(
        task_id, "goal", "agent", Limits(1_000_000), center.host, watcher, grace_ms=1, timeout_ms=None
    )
    run = center.ledger.admit(admission)
    assert isinstance(run, Run)
    assert center.board.claim(task_id, run.run_id)
    return run


def note_start(center: Center, run: Run, keeper: Process) -> Run:
    """The same run, with its start recorded."""
    running = center.ledger.change_run(
        run,
        "run.started",
        state=RunState.RUNNING,
        started_at=1,
        keeper_pid=keeper.pid,
        keeper_ticks=keeper.start_ticks,
    )
    assert running is not None
    return running


def directory_of(center: Center, run: Run) -> Path:
    return Path(center.state.path_of_run(run.run_id))
