"""The work: tasks are added, and people's commands are given, all the while; some are killed or stopped midway.

What a command that was killed has done is unknown; what it may have done is remembered, so that a cancelled
task or a stopped run can be told from one that nobody asked for.
"""

import json
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from soak.acts import Wish, draw_wish
from soak.agenda import Agenda
from soak.breaches import Breach
from soak.fleet import CAPS, ROLES, Ended, Fleet
from soak.journal import Journal
from soak.kernel import COMMAND, NEWCOMER, SUPERVISOR, Process, send
from soak.ledger import LedgerReader, is_whole

T = TypeVar("T")

FIRST_TASKS = 12
"""The storm finds work in flight."""
MOST_READY = 25
"""More would only wait: with work that waits, every slot that becomes free is taken at once."""

KILLED_SHARE = 0.18
STOPPED_SHARE = 0.1
KILLED_WITHIN_S = 0.35

KNOWN_CODES = frozenset({0, 1, 3, 4, 75})


@dataclass
class Wishes:
    """What was asked for. ``batches``: all lines of one are added, or none."""

    batches: list[tuple[Wish, ...]] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    """Titles of tasks that a command said were added."""
    cancelled: set[str] = field(default_factory=set)
    """Tasks that somebody asked to cancel."""
    stopped: set[str] = field(default_factory=set)
    """Runs that somebody asked to stop."""
    downs: int = 0
    """How often the fleet was told to go down."""


class Crowd:
    """People, who add tasks and give commands."""

    def __init__(self, fleet: Fleet, ledger: LedgerReader, journal: Journal, agenda: Agenda) -> None:
        self.fleet = fleet
        self.ledger = ledger
        self.journal = journal
        self.agenda = agenda
        self.wishes = Wishes()
        self.defects: list[Breach] = []

    def give(
        self,
        *words: str,
        chance: random.Random,
        stdin: str = "",
        on_end: Callable[[Ended], None] = lambda _: None,
    ) -> None:
        """Start a command; the chance decides whether it is killed or stopped midway."""
        fate, moment, stopped_s = chance.random(), chance.random() * KILLED_WITHIN_S, chance.uniform(0.1, 3.0)

        def ended(command: Ended) -> None:
            self._look_for_defects(command)
            self.journal.write("crowd", "ended", words=words, code=command.code, errors=command.errors[-500:])
            on_end(command)

        running = self.fleet.start(*words, stdin=stdin, on_end=ended)
        self.journal.write("crowd", "command", words=words, pid=running.popen.pid)
        if fate < KILLED_SHARE:
            self.agenda.after(moment, lambda: self.kill(running.popen.pid))
        elif fate < KILLED_SHARE + STOPPED_SHARE:
            self.agenda.after(moment, lambda: self._signal(running.popen.pid, signal.SIGSTOP))
            self.agenda.after(moment + stopped_s, lambda: self._signal(running.popen.pid, signal.SIGCONT))

    def kill(self, pid: int) -> None:
        """A command that was started, if it runs still."""
        self._signal(pid, signal.SIGKILL)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        found = [each for each in self.fleet.kernel.scan().processes if each.seen.pid == pid]
        victims: list[Process] = [each for each in found if each.kind in (COMMAND, NEWCOMER, SUPERVISOR)]
        verb = {signal.SIGKILL: "kill", signal.SIGSTOP: "stop"}.get(number)
        if verb and victims:
            self.journal.write("crowd", f"{verb} command", victims)
        for victim in victims:
            send(victim, number)

    def _look_for_defects(self, command: Ended) -> None:
        words = " ".join(command.words)
        if "Traceback" in command.errors or "defect" in command.errors:
            self.defects.append(Breach("no traceback", words, f"`{words}` failed: {command.errors.strip()}"))
        elif command.code >= 0 and command.code not in KNOWN_CODES:
            text = f"`{words}` ended with {command.code}: {command.errors.strip()}"
            self.defects.append(Breach("exit codes", words, text))


class TaskGiver:
    """Adds tasks, one or several at a time."""

    def __init__(self, crowd: Crowd, seed: int) -> None:
        self._crowd = crowd
        self._chance = random.Random(f"{seed} tasks")
        self._number = 0

    def next_wait_s(self) -> float:
        return self._chance.uniform(0.2, 1.2)

    def act(self) -> None:
        self.give(self._chance.randint(1, 6))

    def give(self, count: int) -> None:
        wishes = tuple(self._draw() for _ in range(count))
        chance = random.Random(self._chance.random())
        if self._crowd.ledger.ready() >= MOST_READY:
            return
        self._crowd.wishes.batches.append(wishes)
        if len(wishes) == 1:
            words = ("task", "add", wishes[0].title, "--kind", wishes[0].kind, "--body", json.dumps(wishes[0].body))
            self._crowd.give(*words, chance=chance, on_end=lambda ended: self._acknowledge(wishes, ended))
        else:
            lines = "".join(json.dumps(wish.as_json()) + "\n" for wish in wishes)
            self._crowd.give(
                *("task", "import", "-"),
                chance=chance,
                stdin=lines,
                on_end=lambda ended: self._acknowledge(wishes, ended),
            )

    def _draw(self) -> Wish:
        self._number += 1
        return draw_wish(self._chance, self._number)

    def _acknowledge(self, wishes: tuple[Wish, ...], ended: Ended) -> None:
        if ended.code == 0:
            self._crowd.wishes.acknowledged |= {wish.title for wish in wishes}


class Commander:
    """Gives every other command."""

    def __init__(self, crowd: Crowd, seed: int) -> None:
        self._crowd = crowd
        self._chance = random.Random(f"{seed} commands")
        self._backups = 0
        self._commands: dict[Callable[[float, random.Random], None], int] = {
            self._cancel: 12,
            self._stop: 10,
            self._pause: 8,
            self._restart: 12,
            self._reconcile_twice: 12,
            self._up_twice: 6,
            self._down: 6,
            self._back_up: 5,
            self._verify: 6,
            self._ask: 16,
        }

    def next_wait_s(self) -> float:
        return self._chance.uniform(0.3, 1.6)

    def act(self) -> None:
        [command] = self._chance.choices(list(self._commands), list(self._commands.values()))
        pick = self._chance.random()
        command(pick, random.Random(self._chance.random()))

    # What changes something

    def _cancel(self, pick: float, chance: random.Random) -> None:
        for task in _one(self._crowd.ledger.open_tasks(), pick):
            self._crowd.wishes.cancelled.add(task)
            self._crowd.give("task", "cancel", task, chance=chance)

    def _stop(self, pick: float, chance: random.Random) -> None:
        for run in _one(self._crowd.ledger.open_runs(), pick):
            self._crowd.wishes.stopped.add(run)
            self._crowd.give("stop", run, chance=chance)

    def _pause(self, pick: float, chance: random.Random) -> None:
        [words] = _one([[], *([name] for name in (*ROLES, *CAPS))], pick)
        self._crowd.give("pause", *words, chance=chance)
        self._crowd.agenda.after(chance.uniform(0.2, 3.0), lambda: self._resume(words, chance))

    def _resume(self, words: list[str], chance: random.Random) -> None:
        """Whoever resumes and is killed does it again: a fleet that is paused for good would not be tried."""

        def again(ended: Ended) -> None:
            if ended.code:
                self._resume(words, chance)

        self._crowd.give("resume", *words, chance=chance, on_end=again)

    def _restart(self, pick: float, chance: random.Random) -> None:
        [words] = _one([[], [], *([name] for name in (*ROLES, "@watchdog"))], pick)
        self._crowd.give("restart", *words, chance=chance)

    def _reconcile_twice(self, _pick: float, chance: random.Random) -> None:
        for _ in range(2):
            self._crowd.give("reconcile", chance=chance)

    def _up_twice(self, _pick: float, _chance: random.Random) -> None:
        self._crowd.journal.write("crowd", "up twice")
        for _ in range(2):
            self._crowd.fleet.up()

    def _down(self, pick: float, chance: random.Random) -> None:
        [words] = _one([(), (), (), ("--drain", "--timeout", "1s"), ("--drain", "--timeout", "4s"), ("--now",)], pick)
        self._crowd.wishes.downs += 1
        self._crowd.give("down", *words, chance=chance)

    # What only looks

    def _ask(self, pick: float, chance: random.Random) -> None:
        explained = (["explain", run] for run in _one(self._crowd.ledger.open_runs(), chance.random()))
        [words] = _one([["status"], ["status"], ["why"], ["reconcile", "--dry-run"], *explained], pick)
        self._crowd.give(*words, chance=chance)

    def _verify(self, _pick: float, chance: random.Random) -> None:
        self._crowd.give("ledger", "verify", chance=chance, on_end=self._verified)

    def _back_up(self, _pick: float, chance: random.Random) -> None:
        self._backups += 1
        copy = self._crowd.fleet.root / f"backup {self._backups}.db"
        self._crowd.give(
            "ledger", "backup", str(copy), chance=chance, on_end=lambda ended: self._check_copy(copy, ended)
        )

    def _check_copy(self, copy: Path, ended: Ended) -> None:
        if ended.code == 0 and not is_whole(copy):
            self._crowd.defects.append(Breach("backup", copy.name, f"the backup {copy} is not whole"))
        copy.unlink(missing_ok=True)
        copy.with_name(f"{copy.name}.manifest.json").unlink(missing_ok=True)

    def _verified(self, ended: Ended) -> None:
        if "differences" in ended.output:
            self._crowd.defects.append(Breach("I8", "ledger verify", f"ledger verify: {ended.output.strip()}"))


def _one(candidates: list[T], pick: float) -> list[T]:
    return [candidates[int(pick * len(candidates))]] if candidates else []
