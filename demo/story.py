"""The story: a fleet starts, works, is killed piece by piece, and goes on; then its promises are checked.

Every kill waits for something that was seen, never for a time to pass.
"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from demo.fleet import CAPS, ROLES, DemoFailed, Events, Fleet, until
from demo.kernel import kill, look_at, processes_by_run
from demo.promises import (
    Check,
    check_caps,
    check_one_run_per_task,
    check_outcomes,
    check_proofs,
    check_slots,
    check_tasks,
    check_undisturbed,
    executions,
)
from demo.timeline import Cell, Part, Timeline

TASKS = (
    ("spec-author", "Outline Python's library", "write_spec 420"),
    ("goal", "Sort two million lines on disk", "sort_lines 2000000"),
    ("goal", "Render a spiral", "render 640 -0.7436 0.1318 0.01"),
    ("goal", "Pack files in forked workers", "pack 3 6000"),
    ("goal", "Index a library", "index_words *.py 380"),
    ("goal", "Render a seahorse", "render 640 -0.745 0.105 0.02"),
    ("test", "Test the game of life", "10"),
    ("test", "Test it for longer", "16"),
    ("test", "Test it again", "14"),
    ("improve", "Archive within a quota", "archive 10"),
    ("improve", "Count primes", "count_primes 200000000"),
    ("improve", "Pack some more", "pack 2 6000"),
)
MORE_TASKS = (
    ("test", "Test it once more", "12"),
    ("test", "Test it for the last time", "14"),
    ("goal", "Sort more lines", "sort_lines 1800000"),
    ("improve", "Render an island", "render 600 -1.7687 0.0017 0.01"),
)
"""Added later, so that there is work in flight when the worst happens, however fast the machine is."""

FOLLOW_UPS = 2
FREED_BY = {
    "startup": "the next watcher's start",
    "watcher": "its watcher",
    "watchdog": "the watchdog",
    "admission": "admission",
    "cli": "a reconcile command",
}
LOOK_EVERY_S = 0.6
RECONCILERS = 3


class Story:
    def __init__(self, fleet: Fleet, timeline: Timeline) -> None:
        self._fleet = fleet
        self._timeline = timeline
        self._events = Events(fleet)
        self._runs: dict[str, dict[str, Any]] = {}
        self._titles: dict[str, str] = {}
        self._wanted: list[str] = []
        self._survivors: set[str] = set()
        self._orphans: list[str] = []
        self._look_at = 0.0
        self._ready: dict[str, int] = {}

    def tell(self) -> bool:
        """True if every promise held."""
        acts: tuple[tuple[str, Callable[[], None]], ...] = (
            ("A fleet starts", self._start),
            ("A watcher is killed", self._kill_a_watcher),
            ("An executor is killed", self._kill_an_executor),
            ("Supervisor, watchers and all that there is of a run are killed", self._kill_everybody),
            ("The supervisor is started again", self._start_again),
            ("The rest of the work", self._finish),
        )
        try:
            for title, act in acts:
                self._timeline.say()
                self._timeline.say(Part(title, "bold"))
                act()
            return self._judge()
        finally:
            self._events.close()

    # The acts

    def _start(self) -> None:
        supervisor = self._fleet.start("up")
        self._await_ready(supervisor.pid)
        watchers = ", ".join(f"{role} {self._ready[role]}" for role in ROLES)
        self._timeline.happened("●", f"operations-center up: supervisor {supervisor.pid}", "good",
                                more=f"watchers {watchers}; watchdog {self._ready['@watchdog']}")  # fmt: skip
        self._import(TASKS)

    def _kill_a_watcher(self) -> None:
        """Of goal, with two runs that work."""
        victims = self._until(lambda: self._at_work_of("goal", 2), "two runs of goal at work")
        watcher = self._kill_watcher("goal", victims)
        self._survivors |= set(self._fleet.at_work())
        self._until(lambda: self._looked_after(victims, watcher), "both runs adopted by the next watcher")
        others = sorted(set(self._survivors) - set(victims))
        self._timeline.happened("·", f"{len(others)} other runs went on undisturbed", "dim")
        self._await_more_ended(2)

    def _kill_an_executor(self) -> None:
        """Its keeper lives on and records how it ended."""
        run = self._until(lambda: self._at_work_of("improve", 1) or self._at_work_of("goal", 1), "an executor at work")[
            0
        ]
        self._survivors.discard(run)
        killed = self._fleet.kill_run_processes(run, keeper_too=False)
        self._timeline.happened(
            "☠", f"kill -9 {_words(killed)}: the executor of {_short(run)}", "kill", more=self._title(run)
        )
        self._until(lambda: self._has(run, "run.closed"), f"run {run} closed")
        self._await_more_ended(2)

    def _kill_everybody(self) -> None:
        """Supervisor, every watcher, and a whole run with its keeper: only the watchdog is left to notice."""
        self._import(MORE_TASKS)
        victims = self._until(lambda: self._at_work_of("test", 2), "two runs of test at work")
        supervisor = self._fleet.supervisors[-1]
        seen = look_at(supervisor.pid)
        if seen is None or not kill(seen):
            raise DemoFailed("the supervisor had ended by itself; see up.log")
        supervisor.wait()
        self._survivors |= set(self._fleet.at_work())
        self._timeline.happened("☠", f"kill -9 {supervisor.pid}: the supervisor", "kill")
        for role in ROLES:
            # What has begun a moment ago may not be told of yet.
            at_work = [run for run in self._fleet.at_work() if self._runs.get(run, {}).get("role") == role]
            self._kill_watcher(role, at_work)
        run = victims[0]
        self._survivors.discard(run)
        killed = self._fleet.kill_run_processes(run, keeper_too=True)
        self._timeline.happened(
            "☠",
            f"kill -9 {_words(killed)}: executor and keeper of {_short(run)}",
            "kill",
            more="nobody is left to record an exit",
        )
        self._fleet.commands_at_once(RECONCILERS, "reconcile")
        self._until(lambda: self._has(run, "run.closed"), f"run {run} reclaimed")
        who = f"{RECONCILERS} × `operations-center reconcile` and the watchdog raced for the slot of {_short(run)}"
        self._timeline.happened("·", who, "dim")
        self._orphans = sorted(self._fleet.at_work())
        names = _words([_short(orphan) for orphan in self._orphans])
        self._timeline.happened("·", f"{names} run on, with no watcher and no supervisor", "dim")

    def _start_again(self) -> None:
        supervisor = self._fleet.start("up", "--exit-when-idle")
        self._await_ready(supervisor.pid)
        watchers = ", ".join(f"{role} {self._ready[role]}" for role in ROLES)
        self._timeline.happened(
            "●",
            f"operations-center up --exit-when-idle: supervisor {supervisor.pid}",
            "good",
            more=f"watchers {watchers}",
        )
        self._until(lambda: self._looked_after(self._orphans, None), "what was left adopted")

    def _finish(self) -> None:
        supervisor = self._fleet.supervisors[-1]
        deadline = time.monotonic() + 60
        while supervisor.poll() is None:
            if time.monotonic() > deadline:
                raise DemoFailed("the fleet was not idle within a minute; see up.log")
            self._listen()
        if supervisor.returncode:
            raise DemoFailed(f"the supervisor ended with {supervisor.returncode}; see up.log")
        while self._listen():
            pass
        self._fleet.look()
        self._timeline.happened("●", "nothing is left to do: the supervisor ended with 0", "good")
        self._timeline.show_below("")

    def _import(self, tasks: Sequence[tuple[str, str, str]]) -> None:
        lines = "".join(json.dumps({"kind": k, "title": t, "body": b}) + "\n" for k, t, b in tasks)
        answer = json.loads(self._fleet.command("task", "import", "-", "--json", stdin=lines).stdout)
        self._wanted += [task["id"] for task in answer["tasks"]]
        self._titles |= {task["id"]: task["title"] for task in answer["tasks"]}
        caps = ", ".join(f"{name} {cap}" for name, cap in CAPS.items())
        self._timeline.happened(
            "+", f"operations-center task import: {len(tasks)} tasks", "good", more=f"slots: {caps}"
        )

    # The verdict

    def _judge(self) -> bool:
        runs = self._fleet.ask("runs", "--limit", "1000")["runs"][::-1]
        tasks = self._fleet.ask("task", "list")["tasks"]
        status = self._fleet.ask("status", may_fail=True)
        events = self._fleet.ask("events")["events"]
        verify = self._fleet.ask("ledger", "verify", may_fail=True)
        self._show_tables(runs, tasks, status)
        seen, doubled = executions(self._fleet.witness(), self._fleet.deaths)
        closed = [run["run_id"] for run in runs if run["state"] == "closed"]
        left = processes_by_run(self._fleet.runs_directory)
        checks = [
            check_slots(self._fleet.looks, closed, left),
            check_caps(seen, CAPS),
            check_one_run_per_task(seen, doubled),
            check_tasks(self._wanted, tasks, FOLLOW_UPS),
            check_outcomes(events, runs, seen, verify["differences"]),
            check_proofs(runs),
            check_undisturbed(self._survivors, seen),
        ]
        self._show(checks)
        return all(check.held for check in checks)

    def _show_tables(self, runs: list[dict[str, Any]], tasks: list[dict[str, Any]], status: dict[str, Any]) -> None:
        self._timeline.table(
            "Tasks", ("TASK", "KIND", "STATE", "ATTEMPTS", "TITLE", "REASON"), [_task_row(task) for task in tasks]
        )
        self._timeline.table(
            "Runs",
            ("RUN", "TASK", "ATTEMPT", "BACKEND", "OUTCOME", "PROOF", "SECONDS", "ADOPTED", "RECLAIMED BY"),
            [self._run_row(run) for run in runs],
        )
        self._timeline.table(
            "Slots",
            ("BACKEND", "MAX_CONCURRENT", "HELD"),
            [(each["name"], str(each["max_concurrent"]), str(each["held"])) for each in status["backends"]],
        )

    def _run_row(self, run: dict[str, Any]) -> list[Cell]:
        events = [event for event in self._events.all if event["run_id"] == run["run_id"]]
        settled = next((event for event in events if event["kind"] == "run.settled"), None)
        adopted = sum(event["kind"] == "run.adopted" for event in events)
        style = "good" if run["outcome"] == "succeeded" else "adopt" if run["outcome"] == "retry" else "free"
        note = settled["data"] if settled else {}
        seconds = _seconds(run["settled_at"]) - _seconds(run["reserved_at"]) if run["settled_at"] else 0.0
        return [
            _short(run["run_id"]),
            run["task_id"],
            str(run["attempt"]),
            run["backend"],
            Part(run["outcome"] or run["state"], style),
            run["proof"] or "-",
            f"{seconds:.2f}",
            f"{adopted} ×" if adopted else "-",
            str(note.get("trigger", "-")),
        ]

    def _show(self, checks: list[Check]) -> None:
        self._timeline.say()
        self._timeline.say(Part("Promises", "bold"))
        for check in checks:
            sign = Part("  ✓ ", "good") if check.held else Part("  ✗ ", "bad")
            self._timeline.say(sign, Part(f"{check.promise}  {check.text}", "plain" if check.held else "bad"))
            self._timeline.say(Part(f"        {check.detail}", "dim"))
            for problem in check.problems:
                self._timeline.say(Part(f"        {problem}", "bad"))

    # Waiting, and telling what happens meanwhile

    def _until(self, condition: Callable[[], Any], what: str) -> Any:
        return until(condition, what, self._listen)

    def _await_ready(self, supervisor: int) -> None:
        """Events count from this supervisor on; survivors are said to be ready by it as well."""
        wanted = {*ROLES, "@watchdog"}

        def all_ready() -> bool:
            return wanted <= {
                event["data"]["role"]
                for event in self._events.all
                if event["kind"] == "watcher.ready" and event["data"]["supervisor"] == supervisor
            }

        self._until(all_ready, "watchers and watchdog ready")

    def _listen(self) -> int:
        events = self._events.take(0.05)
        for event in events:
            self._tell_event(event)
        if time.monotonic() >= self._look_at and self._wanted:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            self._fleet.look()
        self._show_progress()
        return len(events)

    def _show_progress(self) -> None:
        working = [run for run in self._runs.values() if run["open"]]
        slots = "  ".join(
            f"{name} {'■' * sum(run['backend'] == name for run in working):□<{cap}}" for name, cap in CAPS.items()
        )
        done = sum(run.get("outcome") == "succeeded" for run in self._runs.values())
        self._timeline.show_below(
            f"           {slots}   {done} of {len(TASKS) + len(MORE_TASKS) + FOLLOW_UPS} tasks done"
        )

    # What was seen

    def _tell_event(self, event: dict[str, Any]) -> None:
        run, data, changed = event["run_id"], event["data"], _changed(event)
        at = _seconds(event["at"])
        match event["kind"]:
            case "run.reserved":
                self._runs[run] = {**changed, "open": True}
            case "run.started":
                about = self._runs[run]
                again = f", attempt {about['attempt']}" if about["attempt"] > 1 else ""
                self._timeline.happened("▶", f"{_short(run)} started", "start", at,
                                        f"{about['role']}: {self._title(run)}{again}")  # fmt: skip
            case "run.adopted":
                before = data["from_watcher"]
                alive = "its executor never noticed" if run in self._fleet.at_work() else "its executor has just ended"
                self._timeline.happened("↺", f"{_short(run)} adopted by watcher {changed['watcher_pid']}, {alive}",
                                        "adopt", at, f"watcher {before} is dead")  # fmt: skip
            case "run.settled":
                self._runs[run] |= {"open": False, "outcome": changed["outcome"]}
                self._tell_settled(event)
            case "run.lost_race":
                self._timeline.happened("×", f"{_short(run)}: a late writer was turned away", "free", at)
            case "watcher.recognised":
                self._timeline.happened(
                    "●", f"{data['role'].strip('@')} {data['pid']} survived and goes on", "good", at
                )
            case "watcher.ready":
                self._ready[data["role"]] = data["pid"]
            case "task.added":
                self._titles[event["task_id"]] = data["task"]["title"]
            case _:
                pass

    def _tell_settled(self, event: dict[str, Any]) -> None:
        run, changed, at = event["run_id"], _changed(event), _seconds(event["at"])
        outcome, proof, reason = changed["outcome"], changed["proof"], changed["reason"] or ""
        if outcome == "succeeded":
            self._timeline.happened("✓", f"{_short(run)} succeeded", "good", at, reason)
        elif outcome == "retry":
            self._timeline.happened("…", f"{_short(run)} asks for a later retry", "adopt", at, reason)
        elif outcome == "failed":
            self._timeline.happened("✗", f"{_short(run)} failed", "bad", at, reason)
        else:
            who = FREED_BY.get(event["data"].get("trigger"), "a watcher")
            self._timeline.happened(
                "⚖", f"{_short(run)} {outcome}; {who} freed its slot", "free", at, f"proof {proof}: {reason}"
            )

    def _kill_watcher(self, role: str, in_flight: Collection[str]) -> int:
        watcher = look_at(self._ready[role])
        if watcher is None or not kill(watcher):
            raise DemoFailed(f"the watcher of {role} had ended by itself; see its log")
        names = _words([_short(run) for run in in_flight])
        self._timeline.happened(
            "☠", f"kill -9 {watcher.pid}: the watcher of {role}", "kill", more=f"{names} in flight" if in_flight else ""
        )
        return watcher.pid

    def _at_work_of(self, role: str, count: int) -> list[str] | None:
        """Runs of a role at work that the watcher has told the ledger of."""
        work = self._fleet.at_work()
        found = sorted(
            (run for run in work if self._runs.get(run, {}).get("role") == role and self._has(run, "run.started")),
            key=lambda run: -work[run]["at_ns"],
        )
        return found[:count] if len(found) >= count else None

    def _ended(self) -> int:
        return sum(not about["open"] for about in self._runs.values())

    def _await_more_ended(self, count: int) -> None:
        """So that one can follow what happens: the next blow falls when some more work is done."""
        enough = self._ended() + count
        self._until(lambda: self._ended() >= enough, f"{count} more runs ended")

    def _has(self, run: str, kind: str) -> bool:
        return any(event["run_id"] == run and event["kind"] == kind for event in self._events.all)

    def _looked_after(self, runs: Collection[str], dead: int | None) -> bool:
        """Adopted, or ended so soon that the next watcher could only settle them."""
        return all(
            any(
                event["run_id"] == run
                and (
                    (event["kind"] == "run.adopted" and _changed(event)["watcher_pid"] != dead)
                    or event["kind"] == "run.closed"
                )
                for event in self._events.all
            )
            for run in runs
        )

    def _title(self, run: str) -> str:
        task = str(self._runs[run]["task_id"])
        return self._titles.get(task, task)


def _changed(event: dict[str, Any]) -> dict[str, Any]:
    """The columns of the run that the event changed."""
    changed: dict[str, Any] = event["data"].get("run", {})
    return changed


def _task_row(task: dict[str, Any]) -> list[Cell]:
    style = "good" if task["state"] == "done" else "bad"
    parent = f" (after {task['parent']})" if task["parent"] else ""
    return [task["id"], task["kind"], Part(task["state"], style), str(task["attempts"]), task["title"] + parent,
            task["reason"] or ""]  # fmt: skip


def _short(run: str) -> str:
    return run.partition("-")[0]


def _words(things: Collection[object]) -> str:
    return " ".join(map(str, things))


def _seconds(rfc3339: str) -> float:
    return datetime.fromisoformat(rfc3339).timestamp()
