"""A small fleet, run by a release's own code in a directory of its own: it starts, works, restarts, works and stops.

Whoever cannot even do that gets no watcher of the real fleet.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from operations_center.files import decode_json, remove_tree
from operations_center.releases.runtime import Runtime
from operations_center.releases.steps import MARK, Refused, Steps, end_marked, read_tail, reason_of
from operations_center.state_directory import SUPERVISOR, StateDirectory

WITHIN_S = 25.0
LOOK_EVERY_S = 0.05
LAST_LOOK_S = 2.0
"""Before the time is over, so that it can be said what is not done."""

ROLE = "rehearsal"
CONFIG = f"""\
[center]
state_dir = "."
cgroup = "off"
[roles.{ROLE}]
backend = "cat"
[backends.cat]
kind = "command"
argv = ["cat"]
max_concurrent = 1
env = ["{MARK}"]
[watchdog]
min_free_disk = "0B"
"""
"""The mark is passed on, so that not even an executor is left."""


def rehearse(runtime: Runtime, steps: Steps, directory: Path) -> None:
    """Raises Refused, Unavailable, OSError. ``directory`` is made, and removed again."""
    alone = replace(steps, directory=directory, environment=_without_this_fleet(steps.environment))
    begun = steps.awake.look().monotonic
    try:
        directory.mkdir(mode=0o700)
        config = directory / "operations_center.toml"
        config.write_text(CONFIG)
        _Rehearsal(runtime, alone, config, time.monotonic() + WITHIN_S).play()
    except Refused as refusal:
        steps.excuse_since(begun, "rehearsal")
        said = _last_complaint(StateDirectory(directory))
        raise Refused(f"{refusal}; {said}" if said else str(refusal)) from None
    finally:
        end_marked(steps.root)
        with suppress(OSError):
            remove_tree(directory)


class _Task(msgspec.Struct, frozen=True):
    title: str
    state: str
    reason: str | None = None


class _Listed(msgspec.Struct, frozen=True):
    tasks: list[_Task]


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """``until`` is the monotonic time (s) by which it must be over."""

    runtime: Runtime
    steps: Steps
    config: Path
    until: float

    def play(self) -> None:
        self._do("up", "--detach")
        self._do("task", "add", "before the restart")
        self._do("restart")
        self._do("task", "add", "after the restart")
        while undone := [task for task in self._tasks() if task.state != "done"]:
            if time.monotonic() > self.until - LAST_LOOK_S:
                said = reason_of(f"its task {undone[0].title!r} was still {undone[0].state} in the end")
                raise Refused(f"rehearsal: {said}")
            time.sleep(LOOK_EVERY_S)
        self._do("down")
        self._do("ledger", "verify")

    def _tasks(self) -> list[_Task]:
        """Raises Refused also where none of them is on its way to be done."""
        answer = self._do("task", "list", "--json").splitlines()[-1:]
        try:
            tasks = decode_json(answer[0].encode(errors="replace"), _Listed).tasks if answer else []
        except ValueError as error:
            raise Refused(f"rehearsal: task list --json: {error}") from None
        for task in tasks:
            if task.state == "blocked":
                raise Refused(f"rehearsal: its task is blocked: {reason_of(task.reason or '')}")
        return tasks

    def _do(self, *words: str) -> str:
        name = f"rehearsal: {' '.join(words[:2]) if words[0] in ('task', 'ledger') else words[0]}"
        command = self.runtime.command(*words, "--config", str(self.config))
        try:
            return self.steps.begin(name, command, within_s=max(0.01, self.until - time.monotonic()))
        except Refused:
            if time.monotonic() >= self.until:
                raise Refused(f"{name}: the whole of it was not done within {WITHIN_S:g} s") from None
            raise


def _without_this_fleet(environment: Mapping[str, str]) -> dict[str, str]:
    """Without whatever would lead the rehearsal to the directory, to a run or to the code of the fleet that it is made
    for: what it starts anew is to be the release again."""
    return {name: value for name, value in environment.items() if not name.upper().startswith("OPERATIONS_CENTER_")}


def _last_complaint(state: StateDirectory) -> str:
    for whose, name in (("watcher", ROLE), ("supervisor", SUPERVISOR)):
        try:
            lines = read_tail(state.log(name)).splitlines()
        except OSError:
            continue
        said = reason_of("\n".join(line for line in lines if " INFO " not in line))
        if said:
            return f"its {whose}'s log ends with: {said}"
    return ""
