"""The chaos: which process is killed or stopped next, drawn from a seeded chance.

The sequence of deeds and of the numbers drawn for each is determined by the seed; whom they hit depends on who
lives at that moment, and is in the journal.
"""

import os
import random
import signal
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import TypeVar

from demo.kernel import Seen
from soak.agenda import Agenda
from soak.fleet import Fleet
from soak.journal import Journal
from soak.kernel import (
    EXECUTOR,
    FORK_SERVER,
    KEEPER,
    NEWCOMER,
    SUPERVISOR,
    TIMER,
    WATCHDOG,
    WATCHER,
    Process,
    Table,
    catches,
    send,
)

T = TypeVar("T")

TREE = "tree"
SEVERAL = "several"
EVERYTHING = "everything"
NEWBORN = "newborn"
REPLACEMENT = "replacement"
WRITER = "writer"
REEXEC = "re-exec"

KILLS = {
    WATCHER: 14,
    WATCHDOG: 5,
    SUPERVISOR: 6,
    FORK_SERVER: 6,
    KEEPER: 7,
    TIMER: 4,
    EXECUTOR: 9,
    TREE: 6,
    SEVERAL: 5,
    EVERYTHING: 2,
    NEWBORN: 6,
    REPLACEMENT: 8,
    WRITER: 14,
    REEXEC: 9,
}
STOPS = {
    WATCHER: 6,
    WATCHDOG: 3,
    SUPERVISOR: 3,
    FORK_SERVER: 3,
    KEEPER: 4,
    TIMER: 2,
    EXECUTOR: 4,
    TREE: 3,
    SEVERAL: 3,
    EVERYTHING: 1,
    NEWBORN: 3,
    REPLACEMENT: 3,
    WRITER: 7,
}
DEEDS = {f"kill {whom}": weight for whom, weight in KILLS.items()} | {
    f"stop {whom}": weight for whom, weight in STOPS.items()
}

MEAN_WAIT_S = 0.45
NEWBORN_WITHIN_S = 0.1
HUNT_S = 2.0
CHECKED_WITHIN_S = 0.8
"""The supervisor looks first whether its next image could start."""
BEFORE_SHARE = 0.4
CHANGED_WITHIN_S = 5.0


class Storm:
    def __init__(self, fleet: Fleet, journal: Journal, agenda: Agenda, seed: int) -> None:
        self._fleet = fleet
        self._kernel = fleet.kernel
        self._journal = journal
        self._agenda = agenda
        self._chance = random.Random(f"{seed} storm")

    def next_wait_s(self) -> float:
        return min(self._chance.expovariate(1 / MEAN_WAIT_S), 3.0)

    def act(self) -> None:
        [deed] = self._chance.choices(list(DEEDS), list(DEEDS.values()))
        pick, moment, stopped_s = self._chance.random(), self._chance.random(), self._chance.uniform(0.1, 3.0)
        verb, _, whom = deed.partition(" ")
        match whom:
            case "newborn":
                self._hunt(verb, (NEWCOMER, FORK_SERVER, KEEPER, TIMER), pick, moment * NEWBORN_WITHIN_S, stopped_s)
            case "replacement":
                self._strike("kill replaced", "kill", choose(self._kernel.scan(), WATCHER, pick))
                self._hunt(verb, (NEWCOMER,), pick, moment * NEWBORN_WITHIN_S, stopped_s)
            case "writer":
                self._lie_in_wait(verb, stopped_s)
            case "re-exec":
                self._re_execute(pick, moment)
            case "everything" if verb == "kill":
                self._kill_everything()
            case _:
                self._strike(deed, verb, choose(self._kernel.scan(), whom, pick), stopped_s)

    def _strike(self, deed: str, verb: str, victims: Sequence[Process], stopped_s: float = 0.0) -> None:
        number = signal.SIGKILL if verb == "kill" else signal.SIGSTOP
        # Written before it is done: what follows from it is never older than its line.
        alive = self._kernel.alive_still(victims)
        self._journal.write("storm", deed, alive, stopped_s=stopped_s if verb == "stop" else None)
        hit = [victim for victim in alive if send(victim, number)]
        if verb == "stop":
            self._agenda.after(stopped_s, lambda: self._let_go_on(hit))

    def _let_go_on(self, stopped: Sequence[Process]) -> None:
        for process in stopped:
            send(process, signal.SIGCONT)

    def _kill_everything(self) -> None:
        self._journal.write("storm", "kill everything", self._fleet.kill_all())

    def _hunt(self, verb: str, kinds: Sequence[str], pick: float, age_s: float, stopped_s: float) -> None:
        """Wait for the next process of the fleet that is born, and strike it so long after it was seen first."""
        known = {process.seen for process in self._kernel.scan().processes}
        until = time.monotonic() + HUNT_S

        def look() -> None:
            born = [each for each in self._kernel.scan().of(*kinds) if each.seen not in known]
            if born:
                prey = _picked(born, pick)
                self._agenda.after(age_s, lambda: strike({each.seen for each in prey}))
            elif time.monotonic() < until:
                self._agenda.after(0.002, look)

        def strike(prey: Collection[Seen]) -> None:
            # Looked at again: it may have become a watcher meanwhile.
            victims = [each for each in self._kernel.scan().processes if each.seen in prey]
            self._strike(f"{verb} newborn", verb, victims, stopped_s)

        look()

    def _lie_in_wait(self, verb: str, stopped_s: float) -> None:
        """For whoever writes to the ledger next: it is stopped inside of its transaction, and stays so or is killed."""
        until = time.monotonic() + HUNT_S

        def look() -> None:
            pid = self._kernel.writer()
            if pid is not None:
                catch(pid)
            elif time.monotonic() < until:
                self._agenda.after(0.0005, look)

        def catch(pid: int) -> None:
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                return
            caught = [each for each in self._kernel.scan().processes if each.seen.pid == pid]
            self._strike(f"{verb} writer", verb, caught, stopped_s)

        look()

    def _re_execute(self, pick: float, moment: float) -> None:
        """A supervisor is told to execute itself anew, and killed before, or while its next image starts."""
        for supervisor in self._kernel.scan().of(SUPERVISOR):
            if not catches(supervisor.seen.pid, signal.SIGUSR2):
                continue
            self._journal.write("storm", "re-exec supervisor", [supervisor])
            send(supervisor, signal.SIGUSR2)
            if pick < BEFORE_SHARE:
                self._agenda.after(
                    moment * CHECKED_WITHIN_S, partial(self._strike, "kill re-exec", "kill", [supervisor])
                )
            else:
                self._await_image(supervisor, moment * NEWBORN_WITHIN_S, time.monotonic() + CHANGED_WITHIN_S)

    def _await_image(self, supervisor: Process, age_s: float, until: float) -> None:
        """An image that has just been executed catches no signal yet."""
        if not catches(supervisor.seen.pid, signal.SIGUSR2):
            self._agenda.after(age_s, partial(self._strike, "kill image", "kill", [supervisor]))
        elif time.monotonic() < until:
            self._agenda.after(0.002, partial(self._await_image, supervisor, age_s, until))


def choose(table: Table, whom: str, pick: float) -> list[Process]:
    """Whom a deed hits; ``pick`` (0 to 1) decides between several of a kind."""
    match whom:
        case "everything":
            return list(table.processes)
        case "several":
            chance = random.Random(pick)
            return chance.sample(table.processes, min(len(table.processes), chance.randint(2, 6)))
        case "tree":
            runs = table.runs()
            return table.of_run(_picked(runs, pick)[0]) if runs else []
        case _:
            return _picked(sorted(table.of(whom), key=lambda process: process.seen.pid), pick)


def _picked(candidates: Sequence[T], pick: float) -> list[T]:
    return [candidates[int(pick * len(candidates))]] if candidates else []
