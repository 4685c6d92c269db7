"""Which promise a look, or a line of a witness, shows to be broken. Pure: looks come in, breaches come out.

A look is read in this order: the ledger, the process table, the ledger again. Only what both readings of the
ledger say counts, and only processes that were seen in the table and once more after it was read whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from demo.kernel import Seen
from soak.ledger import View

CYCLES = 3
"""A slot of a dead run is freed by the second whole cycle of the watchdog after its death: the first may have
begun before it. One more, because a cycle may find the ledger busy."""

LONGEST_S = 120.0
"""However the watchdog's cycles go, as long as one lives and is not stopped. Cycles are what is counted first: on a
machine that is busy with something else a second says little."""

RESERVATION_S = 12.0
"""A reservation whose watcher lives is its watcher's for ten seconds, and a look may come between."""

FORKED_S = 30.0
"""A child keeps its parent's lock from fork to exec, and may be stopped there for three seconds."""


@dataclass(frozen=True)
class Breach:
    """``subject`` is a run, a task or a process: what the events around it are looked up by."""

    promise: str
    subject: str
    text: str
    at_s: float = 0.0


@dataclass(frozen=True)
class Tree:
    """What lived of one run: ``pids`` at the same moment as those of every other tree of the look."""

    run: str
    task: str
    backend: str
    fence: int
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """``cycles``: how many cycles of the watchdog have ended so far; ``reserved``: open runs that a living
    watcher is about to start; ``zombies``: dead children that a process of the fleet has not reaped."""

    at_s: float
    before: View
    after: View
    trees: tuple[Tree, ...] = ()
    carriers: Mapping[str, frozenset[tuple[Seen, int]]] = field(default_factory=dict)
    zombies: frozenset[Seen] = frozenset()
    cycles: int = 0
    watchdog_works: bool = True
    reserved: frozenset[str] = frozenset()


@dataclass
class _Since:
    """Since when something has been seen without a break."""

    at_s: float
    cycles: int
    worked_s: float = 0.0


class Judge:
    """Remembers what has to last before it is a breach."""

    def __init__(self, caps: Mapping[str, int]) -> None:
        self._caps = caps
        self._dead: dict[str, _Since] = {}
        self._shared: dict[str, float] = {}
        self._zombies: dict[Seen, float] = {}
        self._last_at_s: float | None = None
        self.longest_dead_s = 0.0
        self.longest_dead = ""
        self.looks = 0
        self.compared = 0

    def consider(self, look: Look) -> list[Breach]:
        self.looks += 1
        self.compared += len(look.before.holding | {tree.run for tree in look.trees})
        breaches = [
            *self._alive_without_slot(look),
            *self._slots_of_the_dead(look),
            *self._caps_exceeded(look),
            *self._twice_at_once(look),
            *self._two_holders(look),
            *self._lingering_zombies(look),
        ]
        self._last_at_s = look.at_s
        return breaches

    def _alive_without_slot(self, look: Look) -> Iterable[Breach]:
        for tree in look.trees:
            if tree.fence <= look.before.fence and tree.run not in look.before.holding:
                held = look.before.runs.get(tree.run)
                state = held.state if held else "closed or unknown"
                yield Breach(
                    "I1",
                    tree.run,
                    f"run {tree.run} of task {tree.task} was {state}, and processes {_words(tree.pids)} of it lived on",
                    look.at_s,
                )

    def _slots_of_the_dead(self, look: Look) -> Iterable[Breach]:
        alive = {tree.run for tree in look.trees}
        dead = (look.before.holding & look.after.holding) - alive
        passed_s = look.at_s - self._last_at_s if self._last_at_s is not None else 0.0
        self._dead = {run: self._dead.get(run, _Since(look.at_s, look.cycles)) for run in dead}
        for run, since in self._dead.items():
            since.worked_s += passed_s if look.watchdog_works and since.at_s < look.at_s else 0.0
            if run not in look.reserved:
                self._remember_longest(run, since, look)
            elif since.worked_s < RESERVATION_S:
                since.cycles = look.cycles
            if since.worked_s > LONGEST_S or look.cycles - since.cycles >= CYCLES:
                yield Breach(
                    "I1",
                    run,
                    f"run {run} held a slot for {look.at_s - since.at_s:.1f} s without a live process, "
                    f"through {look.cycles - since.cycles} cycles of the watchdog",
                    look.at_s,
                )

    def _remember_longest(self, run: str, since: _Since, look: Look) -> None:
        if look.at_s - since.at_s > self.longest_dead_s:
            self.longest_dead_s = look.at_s - since.at_s
            self.longest_dead = (
                f"{run}, through {look.cycles - since.cycles} cycles of a watchdog that worked for "
                f"{since.worked_s:.1f} s of it"
            )

    def _caps_exceeded(self, look: Look) -> Iterable[Breach]:
        for backend, cap in self._caps.items():
            trees = [tree for tree in look.trees if tree.backend == backend]
            if len(trees) > cap:
                names = ", ".join(tree.run for tree in trees)
                yield Breach("I2", trees[-1].run, f"{len(trees)} trees of {backend} at once, cap {cap}: {names}",
                             look.at_s)  # fmt: skip
            for view in (look.before, look.after):
                held = sorted(run for run in view.holding if view.runs[run].backend == backend)
                if len(held) > cap:
                    yield Breach("I2", held[-1], f"{len(held)} slots of {backend} held, cap {cap}", look.at_s)

    def _twice_at_once(self, look: Look) -> Iterable[Breach]:
        first: dict[str, Tree] = {}
        for tree in look.trees:
            other = first.setdefault(tree.task, tree)
            if other is not tree:
                text = f"task {tree.task} ran twice at once: {other.run} ({_words(other.pids)}) and "
                yield Breach("I3", tree.run, f"{text}{tree.run} ({_words(tree.pids)})", look.at_s)

    def _two_holders(self, look: Look) -> Iterable[Breach]:
        shared = {name for name, holders in look.carriers.items() if len({seen for seen, _ in holders}) > 1}
        self._shared = {name: self._shared.get(name, look.at_s) for name in shared}
        for name, since in self._shared.items():
            holders = look.carriers[name]
            files = {inode for _, inode in holders}
            if len(files) > 1 or look.at_s - since > FORKED_S:
                pids = _words(sorted(seen.pid for seen, _ in holders))
                yield Breach("one holder", name, f"{name} is held by processes {pids}, through {len(files)} file(s)",
                             look.at_s)  # fmt: skip

    def _lingering_zombies(self, look: Look) -> Iterable[Breach]:
        self._zombies = {zombie: self._zombies.get(zombie, look.at_s) for zombie in look.zombies}
        for zombie, since in self._zombies.items():
            if look.at_s - since > LONGEST_S:
                text = f"process {zombie.pid} died {look.at_s - since:.0f} s ago, and its parent has not reaped it"
                yield Breach("reaped", str(zombie.pid), text, look.at_s)


def witnessed_breaches(line: Mapping[str, Any]) -> Iterable[Breach]:
    """What an executor itself found wrong when it began."""
    if line["word"] != "begin":
        return
    at_s = line["at_ns"] / 1e9
    if not line["first"]:
        yield Breach("I5", line["run"], f"run {line['run']} began a second time, in process {line['pid']}", at_s)
    if not line["alone"]:
        text = f"run {line['run']} began while another run of task {line['task']} was alive"
        yield Breach("I3", line["run"], text, at_s)
    if line["crowd"] > line["cap"]:
        text = f"run {line['run']} began as number {line['crowd']} of {line['backend']}, cap {line['cap']}"
        yield Breach("I2", line["run"], text, at_s)


def _words(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
