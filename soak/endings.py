"""What must be true when all is over: every task and every run, by its events, its witnesses and the journal. Pure."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from soak.acts import ENDS_BLOCKED, HOSTILE, OVERSTAYS, Wish
from soak.breaches import Breach
from soak.fleet import IDLE_TIMEOUT_MS, MAX_ATTEMPTS, MAX_INTERRUPTIONS, MAX_RETRIES, TIMEOUT_MS

Row = Mapping[str, Any]

LETTERS = {
    "run.reserved": "r",
    "run.started": "s",
    "run.adopted": "a",
    "run.stop_requested": "o",
    "run.signalled": "g",
    "run.settled": "e",
    "run.finish_taken_over": "f",
    "run.closed": "c",
}
LEGAL_PATH = re.compile(r"r[og]*([sa][aog]*)?ef*c")

OUTCOMES_OF_CODE = {0: "succeeded", 75: "retry"}
NOT_BY_ITSELF = frozenset({"killed", "lost", "timed_out", "stopped", "cancelled"})
COUNTED = frozenset({"succeeded", "failed", "blocked", "timed_out", "killed", "unknown"})


@dataclass(frozen=True)
class Story:
    """All that is known when the soak is over. ``witness``: what executors said, in the order in which they did."""

    tasks: Sequence[Row]
    runs: Sequence[Row]
    events: Sequence[Row]
    witness: Sequence[Row]
    batches: Sequence[tuple[Wish, ...]] = ()
    acknowledged: Collection[str] = ()
    cancelled: Collection[str] = ()
    stopped: Collection[str] = ()
    downs: int = 0
    """How often the fleet was told to go down: a second TERM ends executors, too."""
    struck: Collection[str] = ()


def ending_breaches(story: Story) -> list[Breach]:
    return [
        *check_additions(story),
        *check_tasks(story),
        *check_follow_ups(story),
        *check_paths(story),
        *check_runs(story),
    ]


def check_additions(story: Story) -> Iterable[Breach]:
    """A command that said so has added its tasks; one that was killed has added all of a batch or nothing."""
    counts = Counter(task["title"] for task in story.tasks if task["parent"] is None)
    for batch in story.batches:
        there = [counts.pop(wish.title, 0) for wish in batch]
        titles = f"{batch[0].title} to {batch[-1].title}"
        if len(set(there)) > 1 or there[0] > 1:
            yield Breach("I4", batch[0].title, f"of the batch {titles} the board has {there}")
        elif there[0] == 0 and any(wish.title in story.acknowledged for wish in batch):
            yield Breach("I4", batch[0].title, f"the batch {titles} was acknowledged and is not on the board")
    for title in counts:
        yield Breach("I4", title, f"nobody added the task {title}")


def check_tasks(story: Story) -> Iterable[Breach]:
    runs: dict[str, list[Row]] = defaultdict(list)
    for run in story.runs:
        runs[run["task_id"]].append(run)
    for task in story.tasks:
        wrong = _wrong_end(story, task, runs[task["task_id"]])
        if wrong:
            yield Breach("I4", task["task_id"], f"task {task['task_id']} ({_act(task)}) is {task['state']}: {wrong}")


def _wrong_end(story: Story, task: Row, runs: Sequence[Row]) -> str | None:
    succeeded = [run["run_id"] for run in runs if run["outcome"] == "succeeded"]
    if len(succeeded) > 1:
        return f"it succeeded {len(succeeded)} times: {', '.join(succeeded)}"
    match task["state"]:
        case "done":
            return _wrong_done(task, runs, succeeded)
        case "blocked":
            return _wrong_blocked(task, runs)
        case "cancelled":
            return None if task["task_id"] in story.cancelled else "nobody cancelled it"
        case _:
            return "it has not ended"


def _wrong_done(task: Row, runs: Sequence[Row], succeeded: Sequence[str]) -> str | None:
    if _act(task) == HOSTILE:
        return None
    if not succeeded:
        return "none of its runs succeeded"
    if runs[-1]["run_id"] != succeeded[0]:
        return f"run {runs[-1]['run_id']} came after it had succeeded"
    return f"an act of {_act(task)} cannot succeed" if _act(task) in ENDS_BLOCKED else None


def _wrong_blocked(task: Row, runs: Sequence[Row]) -> str | None:
    if not task["reason"] or not runs:
        return "it has no reason"
    if _act(task) == HOSTILE:
        return None
    last = runs[-1]["outcome"]
    attempts = sum(run["outcome"] in COUNTED for run in runs)
    retries = sum(run["outcome"] == "retry" for run in runs)
    if last in ("failed", "blocked"):
        return None if _act(task) in ("fail", "give up") else f"an act of {_act(task)} does not end {last}"
    if last == "lost":
        interruptions = sum(run["outcome"] in ("lost", "stopped") for run in runs)
        return None if interruptions >= MAX_INTERRUPTIONS else f"only {interruptions} interruptions were counted"
    if last in ("killed", "timed_out"):
        return None if attempts >= MAX_ATTEMPTS else f"only {attempts} of {MAX_ATTEMPTS} attempts were made"
    if last == "retry":
        return None if retries > MAX_RETRIES else f"only {retries} of {MAX_RETRIES} retries were made"
    return None if last == "stopped" else f"its last run is {last}"


def check_follow_ups(story: Story) -> Iterable[Breach]:
    """Each once, and only of what was done."""
    children = Counter(task["parent"] for task in story.tasks if task["parent"] is not None)
    for task in story.tasks:
        wanted = len(json.loads(task["body"]).get("follow_ups", ())) if task["state"] == "done" else 0
        if children[task["task_id"]] != wanted:
            text = (
                f"task {task['task_id']} is {task['state']} and has {children[task['task_id']]} of {wanted} follow-ups"
            )
            yield Breach("I4", task["task_id"], text)


def check_paths(story: Story) -> Iterable[Breach]:
    """Each run's events form a path of the table of transitions, and each write was its holder's."""
    by_run: dict[str, list[Row]] = defaultdict(list)
    for event in story.events:
        if event["run_id"] is not None and event["kind"] in LETTERS:
            by_run[event["run_id"]].append(event)
    for run in story.runs:
        events = by_run.pop(run["run_id"], [])
        path = "".join(LETTERS[event["kind"]] for event in events)
        if not LEGAL_PATH.fullmatch(path):
            kinds = ", ".join(event["kind"].removeprefix("run.") for event in events)
            yield Breach("I5", run["run_id"], f"run {run['run_id']} went an illegal way: {kinds}")
        holders = [change["holder"] for event in events if "holder" in (change := event["data"].get("run", {}))]
        if any(later <= earlier for earlier, later in pairwise(holders)):
            yield Breach("I5", run["run_id"], f"run {run['run_id']} was written by one who had lost it: {holders}")
    for run_id in by_run:
        yield Breach("I8", run_id, f"the log knows run {run_id}, and the ledger does not")


def check_runs(story: Story) -> Iterable[Breach]:
    """Each run ended as its executor witnessed it, or for a reason that the journal knows."""
    begins = Counter(line["run"] for line in story.witness if line["word"] == "begin")
    ends = {line["run"]: line["code"] for line in story.witness if line["word"] == "end"}
    acts = {line["run"]: line["act"] for line in story.witness if line["word"] == "begin"}
    for run in story.runs:
        wrong = _wrong_outcome(story, run, begins[run["run_id"]], ends.get(run["run_id"]), acts.get(run["run_id"]))
        if wrong:
            yield Breach("I5", run["run_id"], f"run {run['run_id']} is {run['outcome']}: {wrong}")
        if run["state"] == "closed" and not run["proof"]:
            yield Breach("I6", run["run_id"], f"run {run['run_id']} was freed without a proof")
    for run_id in set(begins) - {run["run_id"] for run in story.runs}:
        yield Breach("I1", run_id, f"run {run_id} began, and the ledger does not know it")


def _wrong_outcome(story: Story, run: Row, begun: int, code: int | None, act: str | None) -> str | None:
    run_id, outcome = run["run_id"], run["outcome"]
    if run["state"] != "closed":
        return f"it is still {run['state']}"
    if begun > 1:
        return f"its executor began {begun} times"
    if outcome == "never_started":
        return "its executor began" if begun else None
    if act == HOSTILE:
        return None
    if outcome not in NOT_BY_ITSELF:
        return _wrong_own_end(run, begun, code, act)
    return _wrong_foreign_end(story, run_id, run, act)


def _wrong_own_end(run: Row, begun: int, code: int | None, act: str | None) -> str | None:
    if not begun:
        return "nobody saw its executor begin"
    if act == "give up":
        return None if run["outcome"] == "blocked" else "it gave up"
    if act == "claim" and code is None:
        return None if run["outcome"] == "succeeded" else "it wrote that it succeeded, or nothing"
    if code is None:
        return "its executor did not say that it ended"
    expected = OUTCOMES_OF_CODE.get(code, "failed")
    return None if run["outcome"] == expected else f"its executor ended with {code}"


def _wrong_foreign_end(story: Story, run_id: str, run: Row, act: str | None) -> str | None:
    match run["outcome"]:
        case "killed" | "lost":
            return None if run_id in story.struck else "nobody killed a process of it"
        case "timed_out":
            lived_ms = run["settled_at"] - run["reserved_at"]
            overstayed = act in OVERSTAYS or act is None or lived_ms >= min(TIMEOUT_MS, IDLE_TIMEOUT_MS)
            return None if overstayed else f"it was settled after {lived_ms} ms"
        case "stopped":
            asked = story.downs if run["reason"] == "down --now" else run_id in story.stopped
            return None if asked else f"nobody asked for it ({run['reason']})"
        case _:
            return None if run["task_id"] in story.cancelled else "nobody cancelled its task"


def _act(task: Row) -> str:
    return str(json.loads(task["body"])["act"])
