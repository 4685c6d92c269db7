"""A moment, and a run that was admitted a minute before: what the cases of a table differ from."""

from operations_center.clock import Now
from operations_center.model import Run, RunState

NOW = Now(wall=1_760_000_000_000, monotonic=100_000_000)

RUN = Run(
    run_id="r1-abcdef",
    task_id="t1",
    role="goal",
    backend="agent",
    attempt=1,
    fence=1,
    holder=1,
    state=RunState.RUNNING,
    host_id="h",
    boot_id="b",
    pid_namespace=1,
    host="here",
    watcher_pid=10,
    watcher_ticks=20,
    reserved_at=NOW.wall - 60_000,
    reserved_mono=NOW.monotonic - 60_000,
    grace_ms=1_000,
)
