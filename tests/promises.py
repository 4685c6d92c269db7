"""I1 to I5, asked of the ledger, the board, the kernel's process table and the executors' own witness.

Nothing here goes through the code that decides: the process table is read by this module itself.

    I1  a slot is held if and only if something of its run may still be executing
    I2  a backend never admits past its cap
    I3  a task never has two open runs
    I4  no task is lost
    I5  a run's outcome is recorded once, by its current holder, and with a proof

A provider run has no process. Its slot is held as long as there may be a job: of I1 this is left that a submission was
begun, that somebody looks after it or a person is asked, and that nothing it has made is missing or torn.
"""

import hashlib
import os
import select
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from operations_center.config import HttpJobSettings
from operations_center.model import HOLDS_SLOT, OPEN, Event, Proof, Run, RunState, TaskState
from operations_center.wiring import Center

ALL_RUNS = 100_000

_ENTRY = b"OPERATIONS_CENTER_RUN_ID="


def broken_promises(center: Center) -> list[str]:
    """One line for each promise that does not hold; to be asked when nobody acts and no stop is in progress.

    A process that hides its run's id is not seen here.
    """
    runs = center.ledger.recent_runs(task_id=None, backend=None, limit=ALL_RUNS)
    caps = {name: backend.max_concurrent for name, backend in center.config.backends.items()}
    return [
        *broken_slots(runs, living_runs()),
        *broken_history(center.ledger.events(), caps),
        *lost_tasks(center, runs),
        *unproven(runs),
        *broken_jobs(center, runs),
        *center.ledger.verify(),
    ]


def living_runs() -> dict[str, set[int]]:
    """The processes that carry a run's id, by run. A zombie executes nothing; who is dying is waited for."""
    _wait_for_the_dying()
    found: dict[str, set[int]] = defaultdict(set)
    for name in filter(str.isdecimal, os.listdir("/proc")):
        for run_id in _run_ids(name):
            found[run_id].add(int(name))
    return dict(found)


def _wait_for_the_dying() -> None:
    """A process that exits has lost its environment a moment before it is gone: whose it is cannot be told then."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        fields = _stat(pid)
        if fields and fields[0] not in _GONE and int(fields[6]) & _PF_EXITING:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(int(pid))
                assert select.select([pidfd], [], [], 60)[0], f"process {pid} does not come to its end"
                os.close(pidfd)


_GONE = (b"Z", b"X")
_PF_EXITING = 0x4
"""In the flags of ``/proc/PID/stat``; ``include/linux/sched.h``."""


def _run_ids(pid: str) -> list[str]:
    environment = _read(f"/proc/{pid}/environ")
    if _ENTRY not in environment:
        return []
    fields = _stat(pid)
    if not fields or fields[0] in _GONE:
        return []
    return [os.fsdecode(entry.removeprefix(_ENTRY)) for entry in environment.split(b"\0") if entry.startswith(_ENTRY)]


def _stat(pid: str) -> list[bytes]:
    """State, parent, group, session, terminal, its group, flags …; after the name, which may itself hold brackets."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _read(path: str) -> bytes:
    """Empty for a process that is gone, or not ours to read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def broken_slots(runs: Iterable[Run], living: Mapping[str, Collection[int]]) -> Iterator[str]:
    """I1, both ways. Processes of runs that this ledger does not know are somebody else's."""
    for run in runs:
        pids = sorted(living.get(run.run_id, ()))
        if run.state in HOLDS_SLOT and not pids and not run.is_job:
            yield f"I1: run {run.run_id} is {run.state} and holds a slot without a live process"
        if run.state not in HOLDS_SLOT and pids:
            yield f"I1: processes {pids} of run {run.run_id} are alive, and it is {run.state}"


def broken_history(events: Iterable[Event], caps: Mapping[str, int]) -> Iterator[str]:
    """I2, I3 and I5 at every moment of the log. A run that was pruned is not in it at all."""
    backends: dict[str, str] = {}
    holding: Counter[str] = Counter()
    open_of: dict[str, str] = {}
    ended: Counter[tuple[str, str]] = Counter()
    holders: dict[str, int] = {}
    for event in events:
        run_id, task_id, changed = event.run_id, event.task_id, event.data.get("run")
        if run_id is None or task_id is None or changed is None:
            continue
        if event.kind == "run.reserved":
            backends[run_id] = changed["backend"]
            holding[backends[run_id]] += 1
            if holding[backends[run_id]] > caps.get(backends[run_id], ALL_RUNS):
                yield f"I2: {holding[backends[run_id]]} slots of {backends[run_id]} are held after event {event.seq}"
            if task_id in open_of:
                yield f"I3: task {task_id} has runs {open_of[task_id]} and {run_id} open after event {event.seq}"
            open_of[task_id] = run_id
        if event.kind == "run.settled":
            holding[backends[run_id]] -= 1
        if event.kind == "run.closed":
            open_of.pop(task_id, None)
        ended[run_id, event.kind] += event.kind in ("run.settled", "run.closed")
        if ended[run_id, event.kind] > 1:
            yield f"I5: {event.kind} of run {run_id} again, by event {event.seq}"
        if changed.get("holder", holders.get(run_id, 0)) < holders.get(run_id, 0):
            yield f"I5: the holder of run {run_id} falls with event {event.seq}"
        holders[run_id] = changed.get("holder", holders.get(run_id, 0))


def lost_tasks(center: Center, runs: Iterable[Run]) -> Iterator[str]:
    """I4: ended with a reason where it needs one, claimable, or held by an open run."""
    open_runs = {run.task_id: run.run_id for run in runs if run.state in OPEN}
    claims = {claim.task_id: claim.run_id for claim in center.board.running()}
    for task in center.board.tasks():
        if task.state is TaskState.RUNNING and open_runs.get(task.task_id) != claims[task.task_id]:
            yield f"I4: task {task.task_id} is shown as running by {claims[task.task_id]}, which is not open"
        if task.state is TaskState.BLOCKED and not task.reason:
            yield f"I4: task {task.task_id} is blocked without a reason"


def unproven(runs: Iterable[Run]) -> Iterator[str]:
    """I5 and I6: what has ended says how, and why its slot could be freed."""
    for run in runs:
        if run.state in (RunState.SETTLING, RunState.CLOSED) and (run.outcome is None or run.proof is None):
            yield f"I5: run {run.run_id} is {run.state} with outcome {run.outcome} and proof {run.proof}"


def broken_witness(lines: Iterable[str]) -> Iterator[str]:
    """What executors have told, ``WORD TASK RUN``: each run began at most once, and none saw another beside it."""
    begun: Counter[str] = Counter()
    for word, task_id, run_id, *_ in (line.split() for line in lines):
        begun[run_id] += word == "begin"
        if word == "begin" and begun[run_id] > 1:
            yield f"run {run_id} began {begun[run_id]} times"
        if word == "twice":
            yield f"I3: task {task_id} ran twice at once, the second time as run {run_id}"
        if word == "over":
            yield f"I2: run {run_id} ran beside more than its backend takes"


def broken_jobs(center: Center, runs: Iterable[Run]) -> Iterator[str]:
    """What is true of provider runs instead of I1."""
    backends = center.config.backends
    jobs = {run.run_id: run for run in runs if run.is_job}
    tasks = center.board.states([run.task_id for run in jobs.values()]) if jobs else {}
    for run in jobs.values():
        if run.state in HOLDS_SLOT:
            yield from _broken_slot_of_job(run, tasks.get(run.task_id), _may_submit_again(backends.get(run.backend)))
        elif _contradicts(run):
            yield f"I5: run {run.run_id} has ended with proof {run.proof}, and its job is {run.provider_job_id}"
    again = {run_id for run_id, run in jobs.items() if _may_submit_again(backends.get(run.backend))}
    yield from broken_submissions((event for event in center.ledger.events() if event.run_id in jobs), again)
    yield from _broken_artifacts(center, jobs)


def _may_submit_again(settings: object) -> bool:
    return isinstance(settings, HttpJobSettings) and bool(settings.idempotency_header or settings.own_id)


def _broken_slot_of_job(run: Run, task: TaskState | None, may_submit_again: bool) -> Iterator[str]:
    if run.submitting_at is None:
        if not _is_there(run.watcher_pid, run.watcher_ticks):
            yield f"I1: run {run.run_id} holds a slot, and nobody is left who could submit it"
    elif run.doubt is not None:
        if task is TaskState.RUNNING:
            yield f"I4: run {run.run_id} waits for a person, and its task is not blocked"
    elif run.provider_job_id is None and not may_submit_again and not _is_there(run.watcher_pid, run.watcher_ticks):
        yield f"I4: nobody can know whether run {run.run_id} has a job, and no person is asked"


def _is_there(pid: int, start_ticks: int) -> bool:
    fields = _stat(str(pid))
    return bool(fields) and fields[0] not in _GONE and int(fields[19]) == start_ticks


def _contradicts(run: Run) -> bool:
    """A proof that cannot be one for a job that is known, or for one that is not."""
    wrong = Proof.NEVER_SUBMITTED if run.provider_job_id is not None else Proof.PROVIDER_ANSWERED
    return run.proof is wrong


def broken_submissions(events: Iterable[Event], again: Collection[str]) -> Iterator[str]:
    """Submitted once, but for the runs in ``again``, and never with a job's id known, which does not change."""
    begun: Counter[str] = Counter()
    known: dict[str, str] = {}
    for event in events:
        assert event.run_id is not None
        if event.kind == "run.submitting":
            begun[event.run_id] += 1
            if begun[event.run_id] > 1 and event.run_id not in again:
                yield f"run {event.run_id} is submitted once more by event {event.seq}, without a key"
            if event.run_id in known:
                yield f"run {event.run_id} is submitted by event {event.seq}, and has job {known[event.run_id]}"
        if event.kind == "run.submitted":
            job_id = event.data["run"].get("provider_job_id", known.get(event.run_id))
            if known.setdefault(event.run_id, job_id) != job_id:
                yield f"run {event.run_id} had job {known[event.run_id]}, and has {job_id} after event {event.seq}"


def _broken_artifacts(center: Center, jobs: Mapping[str, Run]) -> Iterator[str]:
    """What the log says that jobs have made is there, and as it was downloaded."""
    for event in center.ledger.events():
        if event.kind != "run.settled" or event.run_id is None or event.run_id not in jobs:
            continue
        for artifact in event.data.get("artifacts", ()):
            path = Path(center.state.run(event.run_id), "artifacts", artifact["name"])
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != artifact["sha256"]:
                yield f"run {event.run_id}: {path.name} is not what its job has made"
