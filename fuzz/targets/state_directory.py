"""Whatever stands in a state directory, or in its place: it is examined, opened, shown, and refused or used."""

import os
from collections.abc import Mapping
from contextlib import closing

import hypothesis.strategies as st

from fuzz.plants import Plant, contents, plant, plants
from fuzz.sandbox import Sandbox
from fuzz.targets.center import configuration
from operations_center.care.doctor import examine_fleet
from operations_center.care.older import refuse_older_ledger
from operations_center.care.retention import prune_closed_runs
from operations_center.errors import OperationsCenterError
from operations_center.locks import take_lock
from operations_center.store import Access
from operations_center.views.status import describe, read_members, read_status
from operations_center.wiring import open_center

NAMES = (
    *("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.turn", "ledger.write", "host-id", "supervisor.lock"),
    *("startup.lock", "drain.lock", "pull.lock", "watchers", "pulse", "wake", "logs", "runs", "releases", "configs"),
    *("watchers/goal.lock", "watchers/@watchdog.lock", "pulse/goal.json", "wake/goal", "logs/goal.log", ".gitignore"),
    *("runs/r9223372036854775807-aaaaaa", "runs/r1-aaaaaa", "runs/\udcff", "releases/x", "configs/x", "reserve"),
)

DOCTOR_ONCE_IN = 20
"""It starts processes, which takes longer than all the rest."""

Input = tuple[bool, Mapping[str, Plant], int, bool]


class PlantedStateDirectory:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @property
    def inputs(self) -> st.SearchStrategy[Input]:
        thing = plants(contents(b"SQLite format 3\0" + bytes(84), b"1 2\n"))
        things = st.dictionaries(st.sampled_from(NAMES), thing, max_size=3)
        modes = st.sampled_from([0o700, 0o700, 0o755, 0o777, 0o500, 0o1777])
        return st.tuples(st.booleans(), things, modes, st.integers(1, DOCTOR_ONCE_IN).map(lambda number: number == 1))

    def attempt(self, value: Input) -> None:
        used, things, mode, with_doctor = value
        self._sandbox.empty()
        config = configuration(self._sandbox)
        root = config.center.state_dir
        if used:
            open_center(config).close()
        else:
            root.mkdir(mode=0o700)
        for name, thing in things.items():
            path = root / name
            if path.parent.is_dir() and not path.parent.is_symlink():
                plant(thing, path, self._sandbox)
        root.chmod(mode)
        try:
            self._work(with_doctor)
        finally:
            root.chmod(0o700)

    def close(self) -> None:
        return

    def _work(self, with_doctor: bool) -> None:
        """Do what `status`, `doctor`, `task add`, `up` and the watchdog do first."""
        config = configuration(self._sandbox)
        describe(read_members(config))
        if with_doctor:
            examine_fleet(config, {})
        for access in (Access.READ, Access.CREATE):
            try:
                with closing(open_center(config, access)) as center:
                    describe(read_status(center))
                    if access is Access.CREATE:
                        refuse_older_ledger(
                            center.state.ledger, center.state.runs, lambda: center.ledger.counters()["fence"]
                        )
                        os.close(take_lock(center.state.watcher_lock("goal"), "a watcher"))
                        prune_closed_runs(center.ledger, center.state.runs, 0, center.clock.now().wall + 1)
            except OperationsCenterError:
                continue
