"""The ledger on SQLite."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from itertools import compress
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec.structs import asdict, astuple, replace

from operations_center.admission import (
    OFFERED_FOR_MS,
    Ahead,
    Facts,
    Limits,
    Obstacle,
    Probe,
    Refusal,
    refusals,
)
from operations_center.clock import Now
from operations_center.files import decode_json
from operations_center.identity import Host, this_boot
from operations_center.ids import checked_commit, checked_run_id
from operations_center.keeper import cgroup
from operations_center.ledger import Admission, Change, Lease, Pause, Wish
from operations_center.ledger.fold import differences, fold
from operations_center.ledger.seen_time import Reading, SeenTime, observe
from operations_center.memory import available_memory
from operations_center.model import (
    TRANSITIONS,
    Attempts,
    Event,
    Finish,
    Health,
    JobMemory,
    Outcome,
    Proof,
    Run,
    RunState,
    TaskState,
)
from operations_center.store import Store, as_data, as_json, load_queries

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
EVENTS_PER_READ = 500

LAST_EVENT = 2**62
"""Higher than the number of any event."""

MOST_WISHES = 16
"""Of a role for each backend. The next are announced before these are used up."""

_SQL = load_queries(Path(__file__).with_name("sqlite.sql"))


class SqliteLedger:
    """See ``Ledger`` for what each method promises."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._statements: dict[tuple[str, ...], str] = {}

    def transaction(self) -> AbstractContextManager[None]:
        return self._store.transaction()

    def snapshot(self) -> AbstractContextManager[None]:
        return self._store.snapshot()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        return self._store.within(seconds)

    # Runs

    def admit(self, admission: Admission) -> Run | list[Refusal]:
        with self._store.transaction():
            asked = admission
            facts = self.admission_facts(asked.task_id, asked.role, asked.backend, asked.limits, asked.urgency)
            found = refusals(facts, asked.limits, asked.backend)
            if facts.has_wishes:
                self._keep_offers(asked, facts, found)
            return found or self._reserve(asked, facts.attempt)

    def _keep_offers(self, asked: Admission, facts: Facts, found: Sequence[Refusal]) -> None:
        """Who asks is there to take a slot. Who goes first has one left to it from now on."""
        asking = {"backend": asked.backend, "role": asked.role}
        self._store.execute(_SQL["end_offer"], asking)
        if not found:
            self._store.execute(_SQL["grant_wish"], {**asking, "task_id": asked.task_id})
        elif all(refusal.obstacle is Obstacle.PRIORITY for refusal in found):
            roles = as_json([ahead.role for ahead in facts.ahead])
            self._store.execute(_SQL["offer"], {"backend": asked.backend, "roles": roles, "now": facts.now})

    def announce(self, role: str, at_once: int, wishes: Sequence[Wish]) -> None:
        """Written only where what was announced before does not say the same of those that come next."""
        known = {
            Wish(*columns): before for *columns, before in self._store.rows(_SQL["wishes_of_role"], {"role": role})
        }
        wanted = _first_of_each_backend(wishes, MOST_WISHES)
        if set(_first_of_each_backend(wishes, min(at_once, MOST_WISHES))) <= set(known) <= set(wishes) and all(
            before == at_once for before in known.values()
        ):
            return
        with self._store.transaction():
            self._store.execute(_SQL["forget_wishes"], {"role": role})
            rows = [{"role": role, "at_once": at_once, **asdict(wish)} for wish in wanted]
            self._store.execute_each(_SQL["wish"], rows)

    def admission_facts(
        self, task_id: str, role: str, backend: str, limits: Limits, urgency: int | None = None
    ) -> Facts:
        clocks = self._store.clock.now()
        now = clocks.wall
        row = self._store.row(_SQL["admission_facts"], {"task_id": task_id, "backend": backend, "now": now})
        assert row is not None
        open_run, task_held, slots_held, paused, wishes, cooldown_until, broken_until, why, *attempts = row
        remembered = Attempts(*attempts)
        in_last_hour, in_last_day = self._admitted(backend, clocks) if limits.has_budget else (0, 0)
        return Facts(
            now=now,
            open_run=open_run,
            task_held=bool(task_held),
            slots_held=slots_held,
            in_last_hour=in_last_hour,
            in_last_day=in_last_day,
            pauses=self._pauses_of(role, backend) if paused else (),
            not_before=remembered.backs_off_until(now),
            available_memory=None if limits.min_available_memory is None else available_memory(),
            attempt=remembered.attempts + 1,
            cooldown_until=cooldown_until,
            broken_until=broken_until,
            broken_reason=why,
            probe=self._probe(backend, broken_until) if broken_until is not None and broken_until <= now else None,
            has_wishes=bool(wishes),
            ahead=self._ahead(task_id, role, backend, urgency, now) if wishes and urgency is not None else (),
        )

    def _probe(self, backend: str, broken_until: int) -> Probe | None:
        row = self._store.row(_SQL["probe"], {"backend": backend, "broken_until": broken_until})
        return Probe(*row) if row else None

    def _ahead(self, task_id: str, role: str, backend: str, urgency: int, now: int) -> tuple[Ahead, ...]:
        """The more urgent tasks that other roles wait to start, as many of each as it could start now."""
        asked = {"task_id": task_id, "role": role, "backend": backend, "urgency": urgency, "now": now}
        rows = self._store.rows(_SQL["wishes_ahead"], asked | {"given_up_at": now - OFFERED_FOR_MS})
        found: list[Ahead] = []
        taken: Counter[str] = Counter()
        for row in rows:
            if taken[row["role"]] < row["room"]:
                taken[row["role"]] += 1
                found.append(Ahead(row["role"], row["task_id"], row["offered_at"]))
        return tuple(found)

    def _pauses_of(self, role: str, backend: str) -> tuple[str, ...]:
        return tuple(
            f"{pause.name if pause.name != '*' else 'everything'} is paused: {pause.reason}"
            for pause in self.pauses()
            if pause.name in ("*", role, backend)
        )

    def _admitted(self, backend: str, now: Now) -> tuple[int, int]:
        """Within the last hour, and the last day."""
        used = self._store.row(
            _SQL["admitted_since"],
            {
                "backend": backend,
                "boot_id": this_boot(),
                "now": now.wall,
                "mono": now.monotonic,
                "slept": now.slept,
                "hour": HOUR_MS,
                "day": DAY_MS,
            },
        )
        assert used is not None
        return used["in_last_hour"], used["in_last_day"]

    def _reserve(self, admission: Admission, attempt: int) -> Run:
        now = self._store.clock.now()
        fence = self._store.next_number("fence")
        timeout = admission.timeout_ms
        run = Run(
            run_id=f"r{fence}-{os.urandom(3).hex()}",
            task_id=admission.task_id,
            role=admission.role,
            backend=admission.backend,
            attempt=attempt,
            fence=fence,
            holder=1,
            state=RunState.RESERVED,
            host_id=admission.host.host_id,
            boot_id=admission.host.boot_id,
            pid_namespace=admission.host.pid_namespace,
            host=admission.host.name,
            watcher_pid=admission.watcher.pid,
            watcher_ticks=admission.watcher.start_ticks,
            reserved_at=now.wall,
            reserved_mono=now.monotonic,
            grace_ms=admission.grace_ms,
            release=admission.release,
            deadline_at=now.wall + timeout if timeout is not None else None,
            deadline_mono=now.monotonic + timeout if timeout is not None else None,
            kind=admission.kind,
            idle_timeout_ms=admission.idle_timeout_ms,
            max_output=admission.max_output,
        )
        columns = {name: _stored(value) for name, value in asdict(run).items() if value is not None}
        self._store.execute(self._statement("insert_run", columns), tuple(columns.values()))
        self._store.append_event("run.reserved", run_id=run.run_id, task_id=run.task_id, data={"run": columns})
        return run

    def change_run(self, old: Run, event: str, *, note: Mapping[str, Any] | None = None, **changes: Any) -> Run | None:
        (changed,) = self.change_runs(event, [Change(old, changes, note)])
        return changed

    def change_runs(self, event: str, changes: Sequence[Change]) -> list[Run | None]:
        asked = [_Asked.of(event, change) for change in changes]
        with self._store.transaction():
            wins = [self._write_run(each) for each in asked]
            self._store.append_events(event, [each.told() for each in compress(asked, wins)])
            if not all(wins):
                lost = compress(asked, [not win for win in wins])
                self._store.append_events("run.lost_race", [each.refused(event) for each in lost])
        return [each.new if win else None for each, win in zip(asked, wins, strict=True)]

    def _write_run(self, asked: "_Asked") -> bool:
        old = asked.change.old
        guard = (old.fence, old.run_id, old.holder, str(old.state))
        return self._store.execute(self._statement("write_run", asked.stored), (*asked.stored.values(), *guard)) == 1

    def _statement(self, name: str, columns: Collection[str]) -> str:
        """The statement that writes these columns of a run: the same text each time, which is then prepared already."""
        key = (name, *columns)
        if key not in self._statements:
            places = ", ".join("?" * len(columns))
            self._statements[key] = _SQL[name].format(columns=", ".join(columns), values=places)
        return self._statements[key]

    def set_attempts(self, task_id: str, attempts: Attempts) -> None:
        self.set_attempts_of({task_id: attempts})

    def attempts_of(self, task_ids: Collection[str]) -> dict[str, Attempts]:
        rows = self._store.rows(_SQL["attempts_of"], {"task_ids": as_json(list(task_ids))})
        return {task_id: Attempts(*columns) for task_id, *columns in rows}

    def set_attempts_of(self, attempts: Mapping[str, Attempts]) -> None:
        with self._store.transaction():
            rows = [(task_id, *astuple(each)) for task_id, each in attempts.items()]
            self._store.execute_each(_SQL["set_attempts"], rows)
            told = [(None, task_id, {"attempts": each}) for task_id, each in attempts.items()]
            self._store.append_events("task.attempts", told)

    def hold_task(self, task_id: str, until: int) -> bool:
        with self._store.transaction():
            if self._store.row(_SQL["open_run_of_task"], {"task_id": task_id}):
                return False
            since = self._store.clock.now().wall
            self._store.execute(_SQL["hold_task"], {"task_id": task_id, "since": since, "until": until})
            return True

    def release_task(self, task_id: str) -> None:
        with self._store.transaction():
            self._store.execute(_SQL["release_task"], {"task_id": task_id})

    def run(self, run_id: str) -> Run | None:
        row = self._store.row(_SQL["run_by_id"], {"run_id": run_id})
        return self._run(row) if row else None

    def open_runs(self, *, role: str | None = None, backend: str | None = None) -> list[Run]:
        return [self._run(row) for row in self._store.rows(_SQL["open_runs"], {"role": role, "backend": backend})]

    def tasks_with_slot(self, *, backend: str | None = None) -> list[str]:
        return [row[0] for row in self._store.rows(_SQL["tasks_with_slot"], {"backend": backend})]

    def recent_runs(self, *, task_id: str | None, backend: str | None, limit: int) -> list[Run]:
        parameters = {"task_id": task_id, "backend": backend, "limit": limit}
        return [self._run(row) for row in self._store.rows(_SQL["recent_runs"], parameters)]

    def closed_before(self, wall_ms: int, limit: int) -> list[str]:
        rows = self._store.rows(_SQL["closed_before"], {**self._horizon(wall_ms), "limit": limit})
        with self._store.damage_told("the id of a run"):
            return [checked_run_id(row["run_id"]) for row in rows]

    def slots_held(self) -> dict[str, int]:
        return {row["backend"]: row["held"] for row in self._store.rows(_SQL["slots_held"])}

    def _run(self, row: Any) -> Run:
        try:
            return _run(row)
        except ValueError as error:
            with self._store.damage_told(f"run {row['run_id']!r}"):
                raise error

    def _event(self, row: Any) -> Event:
        with self._store.damage_told(f"event {row['seq']!r}"):
            return msgspec.convert(dict(row) | {"data": decode_json(bytes(row["data"], "utf-8"), dict)}, Event)

    # Jobs at providers

    def jobs(self, run_ids: Collection[str]) -> dict[str, JobMemory]:
        rows = self._store.rows(_SQL["jobs_of"], {"run_ids": as_json(list(run_ids))})
        return {row["run_id"]: self._job(row) for row in rows}

    def _job(self, row: Any) -> JobMemory:
        with self._store.damage_told(f"the job of run {row['run_id']!r}"):
            return msgspec.convert({**dict(row), "urls": json.loads(row["urls"])}, JobMemory)

    def remember_jobs(self, jobs: Mapping[str, JobMemory]) -> None:
        with self._store.transaction():
            rows = [{"run_id": run_id, **asdict(job), "urls": as_json(job.urls)} for run_id, job in jobs.items()]
            self._store.execute_each(_SQL["remember_job"], rows)

    def health(self) -> dict[str, Health]:
        return {row["backend"]: msgspec.convert(dict(row), Health) for row in self._store.rows(_SQL["health"])}

    def set_health(self, backend: str, health: Health | None) -> None:
        with self._store.transaction():
            if health is None:
                self._store.execute(_SQL["forget_health"], {"backend": backend})
            else:
                self._store.execute(_SQL["set_health"], {"backend": backend, **asdict(health)})

    # Admission's switches, hosts, reports

    def pauses(self) -> list[Pause]:
        return [Pause(**row) for row in self._store.rows(_SQL["pauses"])]

    def pause(self, pause: Pause) -> None:
        with self._store.transaction():
            if any(
                (known.name, known.source, known.reason) == (pause.name, pause.source, pause.reason)
                for known in self.pauses()
            ):
                return
            self._store.execute(_SQL["pause"], as_data(pause))
            self._store.append_event("pause.begun", data={"pause": as_data(pause)})

    def resume(self, name: str | None, source: str) -> int:
        with self._store.transaction():
            ended = self._store.rows(_SQL["resume"], {"name": name, "source": source})
            for row in ended:
                self._store.append_event("pause.ended", data={"pause": {"name": row["name"], "source": source}})
            return len(ended)

    def keep_lease(self, host: Host, lease_ms: int) -> None:
        now = self._store.clock.now()
        known = self.leases().get((host.host_id, host.pid_namespace))
        if known and known.boot_id == host.boot_id and 0 <= now.wall - known.renewed_at < lease_ms // 3:
            return
        renewed = {"renewed_at": now.wall, "lease_until": now.wall + lease_ms, "renewed_mono": now.monotonic}
        with self._store.transaction():
            self._store.execute(_SQL["renew_lease"], as_data(host) | renewed)

    def leases(self) -> dict[tuple[str, int], Lease]:
        return {
            (row["host_id"], row["pid_namespace"]): Lease(
                row["boot_id"], row["renewed_at"], row["lease_until"], row["renewed_mono"]
            )
            for row in self._store.rows(_SQL["leases"])
        }

    def record_reconcile(self, report: Mapping[str, Any], at: int) -> None:
        with self._store.transaction():
            self._store.execute(
                _SQL["record_reconcile"],
                {
                    "trigger": report["trigger"],
                    "at": at,
                    "wall_ms": report["wall_ms"],
                    "verdicts": json.dumps(report["verdicts"]),
                    "skipped": report["skipped"],
                },
            )

    def reconciles(self) -> dict[str, dict[str, Any]]:
        return {
            row["trigger"]: {
                "at": row["at"],
                "wall_ms": row["wall_ms"],
                "verdicts": json.loads(row["verdicts"]),
                "skipped": row["skipped"],
            }
            for row in self._store.rows(_SQL["reconciles"])
        }

    # The log, and care of the ledger

    def note(self, kind: str, data: Mapping[str, Any], *, run_id: str | None = None) -> None:
        with self._store.transaction():
            self._store.append_event(kind, run_id=run_id, data=data)

    def events(self, *, run_id: str | None = None, since: int | None = None, after: int = 0) -> Iterator[Event]:
        while True:
            rows = self._store.rows(
                _SQL["events"], {"run_id": run_id, "since": since, "after": after, "limit": EVENTS_PER_READ}
            )
            for row in rows:
                yield self._event(row)
            if len(rows) < EVENTS_PER_READ:
                return
            after = rows[-1]["seq"]

    def last_event(self) -> int:
        row = self._store.row(_SQL["last_event"])
        return int(row["seq"]) if row else 0

    def restored_since(self, wall_ms: int) -> bool:
        row = self._store.row(_SQL["restored_since"], {"at": wall_ms})
        return row is not None

    def prune(self, run_ids: Sequence[str], events_before: int) -> int:
        with self._store.transaction():
            day_ago = self._store.clock.now().wall - DAY_MS
            if run_ids:
                # Newer than all that is forgotten: the newest event must stay.
                self._store.append_event("ledger.pruned", data={"runs": len(run_ids)})
            forgotten = 0
            for run_id in run_ids:
                self._store.execute(_SQL["keep_admission"], {"run_id": run_id, "day_ago": day_ago})
                if self._store.execute(_SQL["forget_run"], {"run_id": run_id}):
                    self._store.execute(_SQL["forget_events_of_run"], {"run_id": run_id})
                    self._store.execute(_SQL["forget_job"], {"run_id": run_id})
                    forgotten += 1
            self._store.execute(_SQL["forget_notes"], self._horizon(events_before))
            self._store.execute(_SQL["forget_admissions"], {"day_ago": day_ago})
            return forgotten

    def observe_clocks(self) -> SeenTime:
        with self._store.transaction():
            now = self._store.clock.now()
            before = self.seen_time()
            seen = observe(before, Reading(this_boot(), now.wall, now.boottime))
            # What there is at the first look of a boot was there before the machine was off.
            every = HOUR_MS if before is not None and before.boot_id == seen.boot_id else 0
            self._store.execute(_SQL["keep_seen_time"], asdict(seen))
            self._store.execute(_SQL["keep_seen_mark"], {"seen": seen.seen, "wall": seen.wall, "every": every})
        return seen

    def seen_time(self) -> SeenTime | None:
        row = self._store.row(_SQL["seen_time"])
        return SeenTime(*row) if row is not None else None

    def certainly_before(self, wall_ms: int) -> int:
        mark = self._mark_before(wall_ms)
        return wall_ms if mark is None else min(wall_ms, mark[0])

    def _horizon(self, wall_ms: int) -> dict[str, Any]:
        """What lies before a moment by each of the clocks, as parameters of a statement."""
        now, mark = self._store.clock.now(), self._mark_before(wall_ms)
        return {
            "before": wall_ms,
            "boot_id": this_boot(),
            "mono_before": now.monotonic - (now.wall - wall_ms),
            "last_event": LAST_EVENT if mark is None else mark[1],
        }

    def _mark_before(self, wall_ms: int) -> tuple[int, int] | None:
        """Wall clock and newest event of when as much time was yet to be seen as has passed since by the wall clock.

        None where nothing was ever seen, or no time is asked for: then the wall clock alone can say.
        """
        seen, age = self.seen_time(), self._store.clock.now().wall - wall_ms
        if seen is None or age <= 0:
            return None
        row = self._store.row(_SQL["seen_mark"], {"seen": seen.seen - age})
        return (0, 0) if row is None else (row["wall"], row["event"])

    def verify(self) -> list[str]:
        """What is wrong with the ledger, one line each; empty when the fold of the log is the present."""
        with self._store.snapshot():
            damage = self._store.integrity_errors()
            present = {
                "run": {row["run_id"]: dict(row) for row in self._store.rows(_SQL["all_runs"])},
                "task": {row["task_id"]: dict(row) for row in self._store.rows(_SQL["all_tasks"])},
                "attempts": {row["task_id"]: dict(row) for row in self._store.rows(_SQL["all_attempts"])},
                "pause": {f"{pause.name}/{pause.source}": as_data(pause) for pause in self.pauses()},
                "release": {row["commit"]: dict(row) for row in self._store.rows(_SQL["all_releases"])},
            }
            return damage + differences(fold(self.events()), present)

    def backup(self, destination: Path) -> None:
        self._store.copy_to(destination)

    def sizes(self) -> tuple[int, int]:
        """How many runs and how many events there are."""
        row = self._store.row(_SQL["sizes"])
        assert row is not None
        return int(row["runs"]), int(row["events"])

    def counters(self) -> dict[str, int]:
        """The newest ``fence`` and the number of the newest ``task`` that were handed out."""
        return {row["name"]: int(row["value"]) for row in self._store.rows(_SQL["counters"])}

    def raise_counters(self, least: Mapping[str, int]) -> None:
        with self._store.transaction():
            for name, value in least.items():
                self._store.execute(_SQL["raise_counter"], {"name": name, "value": value})


def _first_of_each_backend(wishes: Iterable[Wish], most: int) -> list[Wish]:
    seen: Counter[str] = Counter()
    first = []
    for wish in wishes:
        seen[wish.backend] += 1
        if seen[wish.backend] <= most:
            first.append(wish)
    return first


class _Asked(msgspec.Struct, frozen=True, gc=False):
    """A transition that is in the table: the run before and after, and the columns as they are stored."""

    change: Change
    new: Run
    stored: Mapping[str, Any]

    @classmethod
    def of(cls, event: str, change: Change) -> Self:
        """Raises ValueError for what is no transition."""
        old, new = change.old, replace(change.old, **change.columns)
        if (event, old.state, new.state) not in _TRANSITIONS:
            raise ValueError(f"cannot change run {old.run_id}: no {event} from {old.state} to {new.state}")
        return cls(change, new, {name: _stored(value) for name, value in change.columns.items()})

    def told(self) -> tuple[str, str, dict[str, Any]]:
        """What the log keeps: the columns that have changed, and why."""
        old, asked = self.change.old, self.change.columns
        changed = {name: value for name, value in self.stored.items() if getattr(old, name) != asked[name]}
        return old.run_id, old.task_id, {"run": changed, **(self.change.note or {})}

    def refused(self, event: str) -> tuple[str, str, dict[str, Any]]:
        old, note = self.change.old, self.change.note or {}
        return old.run_id, old.task_id, {"refused": event, "holder": old.holder, "state": old.state, **note}


_TRANSITIONS: frozenset[tuple[str, RunState | None, RunState]] = frozenset(TRANSITIONS)


def _stored(value: Any) -> Any:
    """As SQLite stores it, so that the log and the row compare equal."""
    if value is None or type(value) in (int, str):
        return value
    if isinstance(value, StrEnum):
        return str(value)
    return as_json(value) if isinstance(value, Finish) else value


_STATE = Run.__struct_fields__.index("state")
_FINISH = Run.__struct_fields__.index("finish")
_WORDS = [
    (Run.__struct_fields__.index(name), kind)
    for name, kind in (("outcome", Outcome), ("stop_outcome", Outcome), ("proof", Proof), ("stop_then", TaskState))
]


def _run(row: Iterable[Any]) -> Run:
    """Of a whole row: the table has its columns in the order of the fields."""
    columns = list(row)
    columns[_STATE] = RunState(columns[_STATE])
    for place, kind in _WORDS:
        if columns[place] is not None:
            columns[place] = kind(columns[place])
    if columns[_FINISH] is not None:
        columns[_FINISH] = msgspec.json.decode(columns[_FINISH], type=Finish)
    return _checked(Run(*columns))


def _checked(run: Run) -> Run:
    """Return it. Raises ValueError where an id in it is none: its directory and its release are found by them."""
    checked_run_id(run.run_id)
    if run.release is not None:
        checked_commit(run.release)
    if run.cgroup is not None and not cgroup.is_path_of(run.cgroup, run.run_id):
        raise ValueError(f"{run.cgroup!r:.80} is no cgroup of {run.run_id}")
    return run
