"""One soak from beginning to end: a fleet comes up, works through a storm, calms down, and is judged."""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from soak.agenda import Agenda
from soak.breaches import Breach
from soak.endings import Story, ending_breaches
from soak.fleet import Fleet
from soak.journal import Journal
from soak.kernel import FLEET, open_descriptors, resident_kib
from soak.ledger import LedgerReader
from soak.leftovers import leftover_breaches
from soak.observer import Observer
from soak.storm import Storm
from soak.work import FIRST_TASKS, Commander, Crowd, TaskGiver

UP_WITHIN_S = 120.0
IDLE_WITHIN_S = 300.0
END_WITHIN_S = 60.0
UP_KILLED_SHARE = 0.15
UP_KILLED_WITHIN_S = 0.5
"""Some supervisors are killed before they are one."""

DESCRIPTORS_MORE = 4
RESIDENT_KIB_MORE = 24 * 1024


class SoakFailed(Exception):
    """The soak itself could not go on; nothing is said about the promises."""


@dataclass
class Summary:
    breaches: list[Breach] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    longest_dead_s: float = 0.0
    longest_dead: str = ""
    looks: int = 0
    compared: int = 0
    story: Story | None = None


class Soak:
    def __init__(self, fleet: Fleet, seconds: float, seed: int) -> None:
        self._fleet = fleet
        self._seconds = seconds
        self._seed = seed
        self._chance = random.Random(f"{seed} soak")
        self._journal = Journal(fleet.root / "journal.jsonl")
        self._agenda = Agenda()
        self._observer = Observer(fleet, _say_breach)
        self._up_is_due = False
        self._is_stormy = False

    def run(self) -> Summary:
        """Raises SoakFailed where the fleet does not come up at all."""
        self._fleet.configure(cgroup=self._chance.random() < 0.5)
        self._fleet.up()
        self._await_fleet()
        self._ledger = LedgerReader(self._fleet.state / "ledger.db")
        self._crowd = Crowd(self._fleet, self._ledger, self._journal, self._agenda)
        before = self._measure()
        self._observer.start()
        try:
            self._storm()
            self._calm_down()
            self._compare(before, self._measure())
        finally:
            self._observer.stop()
        self._take_down()
        return self._judge()

    # The storm

    def _storm(self) -> None:
        until = time.monotonic() + self._seconds
        storm = Storm(self._fleet, self._journal, self._agenda, self._seed)
        giver = TaskGiver(self._crowd, self._seed)
        giver.give(FIRST_TASKS)
        for actor in (storm, giver, Commander(self._crowd, self._seed)):
            self._agenda.engage(actor, until)
        self._is_stormy = True
        self._agenda.run(until, self._keep_up)
        self._is_stormy = False

    def _keep_up(self) -> None:
        """Whoever ran ``up`` runs it again when it has ended, after a moment that chance decides."""
        self._fleet.reap()
        if not self._fleet.living_supervisors() and not self._up_is_due:
            self._up_is_due = True
            self._agenda.after(self._chance.uniform(0.0, 1.0), self._start_again)

    def _start_again(self) -> None:
        self._up_is_due = False
        begun = self._fleet.up()
        self._journal.write("crowd", "up", pid=begun.pid)
        if self._is_stormy and self._chance.random() < UP_KILLED_SHARE:
            self._agenda.after(self._chance.uniform(0.0, UP_KILLED_WITHIN_S), lambda: self._crowd.kill(begun.pid))

    # The calm

    def _calm_down(self) -> None:
        """Whoever was stopped goes on, what was paused is resumed, and the fleet works until nothing is left."""
        self._agenda.finish()
        self._journal.write("soak", "calm")
        # Commands of the storm may still pause something, or take the fleet down.
        self._wait(lambda: not self._fleet.commands, "the last command ends")
        self._await_fleet()
        self._fleet.ask("resume")
        self._wait(self._is_idle, "nothing is left to do", fatal=False)

    def _is_idle(self) -> bool:
        return self._ledger.unfinished() == 0

    def _wait(self, condition: Callable[[], bool], what: str, *, fatal: bool = True) -> None:
        until = time.monotonic() + IDLE_WITHIN_S
        while not condition():
            if time.monotonic() > until:
                text = f"after {IDLE_WITHIN_S:.0f} s of calm still waiting for this: {what}"
                if fatal:
                    raise SoakFailed(text)
                self._observer.report(Breach("I4", "idle", f"{text}: {self._fleet.ask('why').output}"))
                return
            self._agenda.run(time.monotonic() + 0.1, self._keep_up)

    def _await_fleet(self) -> None:
        until = time.monotonic() + UP_WITHIN_S
        while self._state_of_fleet() != "up":
            if time.monotonic() > until:
                raise SoakFailed(f"the fleet is not up after {UP_WITHIN_S:.0f} s; see {self._fleet.root / 'up.log'}")
            self._agenda.run(time.monotonic() + 0.2, self._keep_up)

    def _state_of_fleet(self) -> str:
        ended = self._fleet.ask("status", "--json")
        return str(json.loads(ended.output)["state"]) if ended.output else ended.errors

    # The verdict

    def _measure(self) -> dict[str, tuple[int, int]]:
        """Open descriptors and resident KiB of each process of the fleet, by kind and role."""
        found = {}
        for process in self._fleet.kernel.scan().of(*FLEET):
            descriptors, resident = open_descriptors(process.seen.pid), resident_kib(process.seen.pid)
            if descriptors is not None and resident is not None:
                found[f"{process.kind} {process.role or ''}".strip()] = (descriptors, resident)
        return found

    def _compare(self, before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> None:
        self._journal.write("soak", "measured", before=before, after=after)
        for name in before.keys() & after.keys():
            for what, old, new, more in zip(
                ("descriptors", "KiB"), before[name], after[name], (DESCRIPTORS_MORE, RESIDENT_KIB_MORE), strict=True
            ):
                if new > old + more:
                    self._observer.report(Breach("does not grow", name, f"{name} had {old} {what} and has {new}"))

    def _take_down(self) -> None:
        self._fleet.ask("down")
        until = time.monotonic() + END_WITHIN_S
        while self._is_something_left() and time.monotonic() < until:
            time.sleep(0.02)

    def _is_something_left(self) -> bool:
        # A supervisor that has ended is ours to reap.
        self._fleet.living_supervisors()
        return bool(self._fleet.kernel.scan().processes)

    def _judge(self) -> Summary:
        breaches = [*self._observer.breaches, *self._crowd.defects]
        breaches += self._reconcile_again()
        story = self._story()
        breaches += [*ending_breaches(story), *leftover_breaches(self._fleet, self._observer.kernel.ours, story.runs)]
        verify = self._fleet.ask("ledger", "verify")
        if verify.code:
            breaches.append(Breach("I8", "ledger verify", f"ledger verify: {verify.output.strip()} {verify.errors}"))
        self._ledger.close()
        judge = self._observer.judge
        return Summary(
            breaches,
            self._journal.hits,
            Counter(task["state"] for task in story.tasks),
            Counter(run["outcome"] or run["state"] for run in story.runs),
            Counter(event["kind"] for event in story.events),
            judge.longest_dead_s,
            judge.longest_dead,
            judge.looks,
            judge.compared,
            story,
        )

    def _reconcile_again(self) -> list[Breach]:
        """The first may find something; the second must not."""
        reports = [json.loads(self._fleet.ask("reconcile", "--json").output) for _ in range(2)]
        return [
            Breach("I5", "reconcile", f"a second reconciliation still did something: {action}")
            for action in reports[1]["actions"]
        ]

    def _story(self) -> Story:
        witness = (self._fleet.shelf / "witness.jsonl").read_text().splitlines()
        wishes = self._crowd.wishes
        return Story(
            tasks=self._ledger.tasks(),
            runs=self._ledger.runs(),
            events=self._ledger.events(),
            witness=[json.loads(line) for line in witness],
            batches=wishes.batches,
            acknowledged=wishes.acknowledged,
            cancelled=wishes.cancelled,
            stopped=wishes.stopped,
            downs=wishes.downs,
            struck=self._journal.struck,
        )


def _say_breach(breach: Breach) -> None:
    print(f"BREACH {breach.promise}: {breach.text}", file=sys.stderr, flush=True)
