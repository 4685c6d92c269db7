"""Whatever an executor leaves in its run directory: it is judged, settled, explained, shown and removed."""

from collections.abc import Mapping

import hypothesis.strategies as st

from fuzz.plants import PID, TICKS, Plant, contents, plant, plants
from fuzz.sandbox import Sandbox
from fuzz.targets.center import admit, dead_process, directory_of, new_center, note_start
from operations_center.care.retention import prune_closed_runs
from operations_center.cli.tail import Tail, last_lines
from operations_center.errors import OperationsCenterError
from operations_center.in_flight_reconcile import Scope, StopOrder, Trigger, clear_orphaned_in_flight, request_stop
from operations_center.model import Outcome, Run, TaskState
from operations_center.views.explanation import explain

RUNS_OF_A_CENTER = 200
"""A ledger that has grown makes every input slower."""

RESULTS = (
    b'{"outcome": "succeeded", "summary": "s", "follow_ups": [{"title": "t", "kind": "goal", "body": "b"}]}',
    b'{"outcome": "retry", "retry_after": "10m", "artifacts": ["a"]}',
)
TASK = b'{"title": "t", "kind": "goal", "body": "b"}'


class RunDirectory:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._watcher = dead_process()
        self._keeper = dead_process()
        self._center = new_center(sandbox)
        self._left = RUNS_OF_A_CENTER

    @property
    def inputs(self) -> st.SearchStrategy[tuple[Mapping[str, Plant], bool, bool]]:
        gates = contents(
            b"%s %s end\n" % (PID, TICKS),
            f"{self._keeper.pid} {self._keeper.start_ticks} end\n".encode(),
            b"1 1 end\n",
        )
        places = {
            "gate": plants(gates),
            "exit": plants(contents(f"{'exit 0 end':63}\n".encode(), f"{'exit 999 end':63}\n".encode(), b" " * 64)),
            "timed_out": plants(contents(f"{'wall end':63}\n".encode(), f"{'idle end':63}\n".encode())),
            "result.json": plants(contents(*RESULTS)),
            "task.json": plants(contents(TASK)),
            "cgroup": plants(contents(b"/sys/fs/cgroup/operations_center-r1-000000", bytes(self._sandbox.outside))),
            "stdout": plants(contents(b"line\n", b"\x1b]0;title\x07")),
            **{name: plants(contents()) for name in ("lock", "stderr", "prompt", "work", "artifacts", "oc", ".lock")},
        }
        some = st.lists(st.sampled_from(sorted(places)), max_size=3, unique=True).flatmap(
            lambda names: st.fixed_dictionaries({name: places[name] for name in names})
        )
        return st.tuples(some, st.booleans(), st.booleans())

    def attempt(self, value: tuple[Mapping[str, Plant], bool, bool]) -> None:
        """Plant, then do to the run what watcher, watchdog, a person and retention do."""
        things, started, stopped = value
        run = self._run(started)
        directory = directory_of(self._center, run)
        directory.mkdir(mode=0o700)
        for name, thing in things.items():
            plant(thing, directory / name, self._sandbox)
        if stopped:
            order = StopOrder(Outcome.STOPPED, "stopped by a person", TaskState.BLOCKED)
            request_stop(self._center.ledger, self._center.clock, run, order)
        self._read(run)
        self._settle(run)
        self._forget()

    def close(self) -> None:
        self._center.close()

    def _run(self, started: bool) -> Run:
        run = admit(self._center, self._watcher)
        return note_start(self._center, run, self._keeper) if started else run

    def _read(self, run: Run) -> None:
        explain(self._center, run)
        directory = directory_of(self._center, run)
        list(last_lines([Tail(stream, directory / stream) for stream in ("stdout", "stderr")], 10))

    def _settle(self, run: Run) -> None:
        clear_orphaned_in_flight(self._center.surroundings, trigger=Trigger.CLI, scope=Scope(run_id=run.run_id))

    def _forget(self) -> None:
        """Let retention remove what has closed; begin a new center now and then."""
        try:
            prune_closed_runs(self._center.ledger, self._center.state.runs, 0, self._center.clock.now().wall + 1)
        except OperationsCenterError:
            pass
        self._left -= 1
        if not self._left:
            self._center.close()
            self._sandbox.empty()
            self._center = new_center(self._sandbox)
            self._left = RUNS_OF_A_CENTER
