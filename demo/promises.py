"""The promises, each as a pure check over what was seen. A check must be able to fail: tests feed it lies.

What executors witnessed and what the kernel's process table showed is held against what ledger and board say.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

ENDED = ("done", "blocked", "cancelled")
HOLDS_SLOT = ("reserved", "running")

LEAK_S = 5.0
"""A slot may be held for so long after its last process: until the next watcher or the watchdog has looked."""

FOREVER = 2**63


@dataclass(frozen=True)
class Check:
    """``problems`` is empty if the promise held; ``detail`` says what it was checked against."""

    promise: str
    text: str
    detail: str
    problems: tuple[str, ...]

    @property
    def held(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Execution:
    """One run as its executor witnessed it; ``ended_ns`` is also the moment at which the kernel buried it."""

    run: str
    task: str
    backend: str
    attempt: int
    pid: int
    began_ns: int
    ended_ns: int = FOREVER
    code: int | None = None


@dataclass(frozen=True)
class Look:
    """Runs that held a slot when the ledger was read, between two looks at the process table.

    ``surely_alive`` were in both of them, ``maybe_alive`` in either.
    """

    at_s: float
    holding: frozenset[str]
    surely_alive: frozenset[str]
    maybe_alive: frozenset[str]


def executions(witness: str, deaths: Mapping[str, int]) -> tuple[list[Execution], list[str]]:
    """What the witness file says, and what is wrong with it. ``deaths``: run → when its killed processes were gone."""
    begun: dict[str, Execution] = {}
    ended: set[str] = set()
    problems = []
    for line in map(json.loads, witness.splitlines()):
        run = line["run"]
        if line["word"] == "begin":
            if run in begun:
                problems.append(f"run {run} began twice, in processes {begun[run].pid} and {line['pid']}")
                continue
            end = deaths.get(run, FOREVER)
            begun[run] = Execution(
                run, line["task"], line["backend"], line["attempt"], line["pid"], line["at_ns"], ended_ns=end
            )
        elif run not in begun or run in ended or begun[run].pid != line["pid"]:
            problems.append(f"run {run} ended in process {line['pid']}, which is not the one that began it once")
        else:
            ended.add(run)
            first = begun[run]
            begun[run] = Execution(
                run, first.task, first.backend, first.attempt, first.pid, first.began_ns, line["at_ns"], line["code"]
            )
    return sorted(begun.values(), key=lambda each: each.began_ns), problems


def check_slots(looks: Sequence[Look], runs_closed: Collection[str], left_alive: Collection[str]) -> Check:
    """I1, both ways, at each look and at the end."""
    problems = [
        f"run {run} had a live process and held no slot" for look in looks for run in look.surely_alive - look.holding
    ]
    empty_since: dict[str, float] = {}
    for look in looks:
        empty = look.holding - look.maybe_alive
        empty_since = {run: empty_since.get(run, look.at_s) for run in empty}
        problems += [
            f"run {run} held a slot for {look.at_s - since:.1f} s without a process"
            for run, since in empty_since.items()
            if look.at_s - since > LEAK_S
        ]
    if not looks:
        problems.append("nobody looked")
    else:
        problems += [f"run {run} holds a slot at the end" for run in looks[-1].holding]
    problems += [f"a process of run {run} is alive at the end" for run in left_alive]
    checked = sum(len(look.holding | look.maybe_alive) for look in looks)
    return Check(
        "I1",
        "a slot is held if and only if something of its run may still execute",
        f"{len(looks)} looks at ledger and process table, {checked} slots compared both ways; "
        f"{len(runs_closed)} runs closed, none left",
        _once(problems),
    )


def check_caps(seen: Sequence[Execution], caps: Mapping[str, int]) -> Check:
    """I2, by the executors' own clocks alone."""
    most = {backend: _most_at_once(each for each in seen if each.backend == backend) for backend in caps}
    problems = [f"{most[name]} executors of {name} at once, and its cap is {cap}" for name, cap in caps.items()
                if most[name] > cap]  # fmt: skip
    problems += [f"backend {name} was never full, so its cap was not tried" for name, cap in caps.items()
                 if most[name] < cap]  # fmt: skip
    problems += [f"run {each.run} is of backend {each.backend}, which has no cap" for each in seen
                 if each.backend not in caps]  # fmt: skip
    at_once = ", ".join(f"{name} {most[name]} of {cap}" for name, cap in caps.items())
    return Check(
        "I2",
        "no backend runs more than max_concurrent",
        f"{2 * len(seen)} moments witnessed by executors; most at once: {at_once}",
        _once(problems),
    )


def check_one_run_per_task(seen: Sequence[Execution], doubled: Sequence[str]) -> Check:
    """I3: no task has two executors at any moment, and no run two at all."""
    problems = list(doubled)
    by_task: dict[str, list[Execution]] = defaultdict(list)
    for each in seen:
        by_task[each.task].append(each)
    for task, tries in by_task.items():
        problems += [
            f"task {task}: run {second.run} began while {first.run} was running"
            for first, second in pairwise(tries)
            if second.began_ns < first.ended_ns
        ]
    again = sum(len(tries) > 1 for tries in by_task.values())
    return Check(
        "I3",
        "a task never has two open runs",
        f"{len(seen)} executors of {len(by_task)} tasks by begin and end; {again} tasks ran more than once, in turn",
        _once(problems),
    )


def check_tasks(wanted: Collection[str], tasks: Sequence[Mapping[str, Any]], follow_ups: int) -> Check:
    """I4: every task that was added, and every one that a result asked for."""
    by_id = {task["id"]: task for task in tasks}
    problems = [f"task {task} is not on the board any more" for task in wanted if task not in by_id]
    problems += [f"task {task['id']} is {task['state']}" for task in tasks if task["state"] not in ENDED]
    problems += [
        f"task {task['id']} is blocked without a reason"
        for task in tasks
        if task["state"] == "blocked" and not task["reason"]
    ]
    children = [task for task in tasks if task["parent"] is not None]
    if len(children) != follow_ups:
        problems.append(f"{follow_ups} follow-ups were asked for, and the board has {len(children)}")
    strangers = [task["id"] for task in tasks if task["id"] not in wanted and task["parent"] is None]
    problems += [f"nobody added task {task}" for task in strangers]
    states = sorted({task["state"] for task in tasks})
    counts = ", ".join(f"{sum(task['state'] == state for task in tasks)} {state}" for state in states)
    return Check(
        "I4",
        "no task is lost",
        f"{len(wanted)} tasks imported and {follow_ups} asked for by a result; the board: {counts}",
        _once(problems),
    )


def check_outcomes(
    events: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    seen: Sequence[Execution],
    ledger_differences: Sequence[str],
) -> Check:
    """I5: settled once and closed once, by whoever held the run, and as its executor witnessed it."""
    by_run: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event["run_id"] is not None:
            by_run[event["run_id"]].append(event)
    witnessed = {each.run: each for each in seen}
    problems = [f"ledger verify: {difference}" for difference in ledger_differences]
    for run in runs:
        mine = by_run[run["run_id"]]
        problems += _settled_once(run, mine)
        problems += _as_witnessed(run, witnessed.get(run["run_id"]))
    known = {run["run_id"] for run in runs}
    problems += [f"run {each.run} was executed and the ledger does not know it" for each in seen
                 if each.run not in known]  # fmt: skip
    late = sum(event["kind"] == "run.lost_race" for event in events)
    return Check(
        "I5",
        "an outcome is recorded once, by the holder",
        f"{len(runs)} runs: one settlement each, and as their executors witnessed; late writers turned away: {late}; "
        "ledger verify",
        _once(problems),
    )


def _settled_once(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = [sum(event["kind"] == kind for event in events) for kind in ("run.settled", "run.closed")]
    problems = (
        [f"run {run['run_id']} was settled {counts[0]} times and closed {counts[1]} times"] if counts != [1, 1] else []
    )
    changes = [event["data"]["run"] for event in events if "run" in event["data"] and event["kind"] != "run.lost_race"]
    holders = [change["holder"] for change in changes if "holder" in change]
    if any(later <= earlier for earlier, later in pairwise(holders)):
        problems.append(f"run {run['run_id']} was written by a holder who had lost it: {holders}")
    return problems


def _as_witnessed(run: Mapping[str, Any], seen: Execution | None) -> list[str]:
    outcome = run["outcome"]
    if seen is None:
        return [] if outcome == "never_started" else [f"run {run['run_id']} is {outcome} and nobody saw it execute"]
    expected = {None: ("killed", "lost"), 0: ("succeeded",), 75: ("retry",)}.get(seen.code, ("failed",))
    if outcome not in expected:
        return [f"run {run['run_id']} is {outcome} in the ledger, and its executor witnessed exit {seen.code}"]
    return []


def check_proofs(runs: Sequence[Mapping[str, Any]]) -> Check:
    """I6: nothing was freed on a guess."""
    problems = [f"run {run['run_id']} was freed without a proof" for run in runs if not run["proof"]]
    counts = {run["proof"]: sum(other["proof"] == run["proof"] for other in runs) for run in runs}
    return Check(
        "I6",
        "death is proven, never guessed",
        "every freed slot has its proof: " + ", ".join(f"{count} × {proof}" for proof, count in counts.items()),
        _once(problems),
    )


def check_undisturbed(survivors: Collection[str], seen: Sequence[Execution]) -> Check:
    """I7: runs that lived when their watcher or the supervisor was killed went from begin to end in one process."""
    by_run = {each.run: each for each in seen}
    problems = [f"run {run} lived when its watcher was killed, and did not end by itself" for run in sorted(survivors)
                if run not in by_run or by_run[run].code is None]  # fmt: skip
    if not survivors:
        problems.append("no run lived through a kill, so nothing was tried")
    return Check(
        "I7",
        "killing watcher or supervisor interrupts no executor",
        f"{len(survivors)} runs lived through it: same process at begin and end",
        _once(problems),
    )


def _most_at_once(seen: Iterable[Execution]) -> int:
    steps = sorted(step for each in seen for step in ((each.began_ns, 1), (each.ended_ns, -1)))
    running = most = 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most


def _once(problems: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(problems))
