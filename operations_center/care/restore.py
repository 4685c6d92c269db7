"""Put a backup in the place of the ledger.

    alone → the backup is what its manifest says, and sound → nothing lives → keep the present ledger beside
    → replace it → bring back the artifacts

A present ledger that SQLite can read is replaced by one transaction of SQLite's own, so a kill at any step leaves
the old one or the new one, and whoever has it open reads on. A damaged one is moved aside with its
write-ahead log (which would be played into whatever file lies beside it), and a note that no program takes
for a ledger stands in its place until the new one does.

No fence and no task's id is handed out twice: both counters go on from the highest that anything here knows.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from operations_center.care.backup import file_time
from operations_center.care.bringing_back import BroughtBack, Returning, returning
from operations_center.care.drafts import draft_beside, sync
from operations_center.care.older import UNKNOWN_NUMBERS, fences_of_directories, plausible
from operations_center.care.verification import compare_with_manifest, copy_backup, refuse_unsound, verify
from operations_center.clock import SystemClock
from operations_center.config import Config
from operations_center.errors import LedgerBusy, LockHeld, OperationsCenterError, Unavailable
from operations_center.identity import Process, is_alive
from operations_center.in_flight_reconcile import Verdict, explain_run
from operations_center.keeper import cgroup
from operations_center.keeper.forgotten import living_runs_below
from operations_center.keeper.inspect import ProcessTable, TreeQuery, read_gate, tree_of
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.locks import is_locked, lock_holder, take_lock
from operations_center.model import HOLDS_SLOT
from operations_center.state_directory import WATCHDOG, StateDirectory
from operations_center.store import Store, load_queries
from operations_center.store.turnstile import Turnstile
from operations_center.text import on_one_line
from operations_center.titles import described
from operations_center.wiring import Center, open_center

WRITE_WITHIN_S = 10.0

LIVING = frozenset({Verdict.KEEP, Verdict.ADOPT, Verdict.STOP, Verdict.CANCEL, Verdict.REAP, Verdict.SUSPECT})

PLACEHOLDER = b"A restore was interrupted here: run `operations-center ledger restore` again.\n"

_SQL = load_queries(Path(__file__).with_name("ledger_file.sql"))


@dataclass(frozen=True, slots=True)
class Restored:
    """``replaced`` is where the ledger that was there lies now; ``fence`` the newest that counts as handed out.

    ``manifest`` None: the backup has none, and was compared with nothing. ``ready`` are its tasks that will run.
    """

    ledger: Path
    replaced: Path | None
    fence: int
    runs: int
    events: int
    ready: int
    manifest: Path | None = None
    artifacts: BroughtBack = field(default_factory=BroughtBack)


def restore(config: Config, source: Path) -> Restored:
    """Raises Unavailable while anything runs, OperationsCenterError for a backup that is not sound."""
    state = StateDirectory(config.center.state_dir)
    state.create()
    with _alone(config, state), _stage(state) as staged:
        copy_backup(source, state.ledger, staged)
        refuse_unsound(source, staged)
        with returning(state.runs) as artifacts:
            manifest = compare_with_manifest(source, staged, artifacts)
            verify(source, staged)
            _refuse_living_runs(config, state, staged)
            with _no_writers(state):
                restored = _replace(state, source, staged)
            return replace(restored, manifest=manifest, artifacts=_bring_back(artifacts, source))


@contextmanager
def _alone(config: Config, state: StateDirectory) -> Iterator[None]:
    """Hold the locks of everybody who would work on the ledger, so that nobody starts meanwhile."""
    watchers = {state.watcher_lock(name) for name in (*config.roles, WATCHDOG)}
    watchers.update((state.root / "watchers").glob("*.lock"))
    with ExitStack() as ours:
        for path in (state.supervisor_lock, *sorted(watchers)):
            try:
                ours.callback(os.close, take_lock(path, "the restore"))
            except LockHeld:
                raise LockHeld(
                    f"cannot restore the ledger: {described(lock_holder(path))} works on it "
                    f"and holds {path}; stop the fleet first, with `operations-center down`"
                ) from None
        yield


@contextmanager
def _stage(state: StateDirectory) -> Iterator[Path]:
    """A directory of its own: the copy has journal and locks beside it, which must not be the ledger's."""
    directory = state.root / "restore"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        yield directory / "ledger.db"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _refuse_living_runs(config: Config, state: StateDirectory, staged: Path) -> None:
    living = _living_by_ledger(config, state) | _living_by_directory(state.runs) | _living_by_backup(staged)
    if living:
        names = ", ".join(sorted(living)[:5]) + (" and more" if len(living) > 5 else "")
        raise Unavailable(
            f"cannot restore the ledger: something of {names} may still be executing; {_how_to_end(state)}"
        )


def _how_to_end(state: StateDirectory) -> str:
    """`down --now` ends what the present ledger knows; where that cannot be read, only the kernel can tell."""
    pids = sorted({pid for pids in living_runs_below(state.runs).values() for pid in pids})
    end = "end it first, with `operations-center down --now`"
    return f"{end}, or where the ledger cannot be read by ending the processes {pids}" if pids else end


def _living_by_ledger(config: Config, state: StateDirectory) -> set[str]:
    """Empty when the present ledger cannot be read: then the directories speak alone."""
    if not _has_content(state.ledger):
        return set()
    try:
        with closing(open_center(config)) as center:
            return {
                run.run_id
                for run in center.ledger.open_runs()
                if run.state in HOLDS_SLOT and (run.is_job or _lives(center, run.run_id))
            }
    except Unavailable:
        raise
    except (OperationsCenterError, ValueError, TypeError):
        return set()


def _lives(center: Center, run_id: str) -> bool:
    explained = explain_run(center.surroundings, run_id)
    return explained is not None and explained[0].verdict in LIVING


def _living_by_directory(runs: Path) -> set[str]:
    table = ProcessTable.scan()
    seen = {directory.name for directory in runs.iterdir() if directory.is_dir() and _seems_alive(directory, table)}
    return seen | set(living_runs_below(runs))


def _living_by_backup(staged: Path) -> set[str]:
    """Runs that the backup calls open, and whose keeper it says is a process that is there now.

    It may be so. It may also be a stranger, whom the next reconciliation would end.
    """
    with closing(sqlite3.connect(staged)) as connection:
        keepers = connection.execute(_SQL["keepers_of_open_runs"]).fetchall()
    return {run_id for run_id, pid, ticks in keepers if is_alive(Process(pid, ticks))}


def _seems_alive(directory: Path, table: ProcessTable) -> bool:
    run_id = directory.name
    query = TreeQuery(run_id, cgroup=cgroup.of_run(run_id, None), claimed=read_gate(directory).claimed)
    return not tree_of(table, query).is_empty or is_locked(directory / "lock")


@contextmanager
def _no_writers(state: StateDirectory) -> Iterator[None]:
    with closing(Turnstile(state.ledger)) as turnstile:
        turnstile.enter(WRITE_WITHIN_S)
        try:
            yield
        finally:
            turnstile.leave()


def _replace(state: StateDirectory, source: Path, staged: Path) -> Restored:
    replaced = state.ledger.with_name(f"{state.ledger.name}.before-restore-{file_time(SystemClock().now().wall)}")
    try:
        with closing(_Present(state.ledger)) as present:
            restored = _prepare(state, source, staged, present.counters, replaced)
            if present.counters is not None:
                present.keep(replaced)
                present.overwrite(staged)
                return restored
        _put_in_place(state.ledger, staged, replaced)
        return restored
    except (OSError, sqlite3.Error) as error:
        raise OperationsCenterError(
            on_one_line(f"cannot replace the ledger {state.ledger}: {error}; correct that and try again")
        ) from None


class _Present:
    """The ledger that is there. ``counters`` is None when it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        self.counters: dict[str, int] | None = None
        if not _has_content(path):
            return
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self.counters = _sound_counters(self._connection)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise LedgerBusy(f"cannot read the ledger {path}: another program holds it; try again") from error

    def keep(self, path: Path) -> None:
        assert self._connection is not None
        with draft_beside(path) as draft:
            with closing(sqlite3.connect(draft)) as copy:
                self._connection.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
            sync(draft)
            draft.rename(path)
        sync(path.parent)

    def overwrite(self, staged: Path) -> None:
        assert self._connection is not None
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        with closing(sqlite3.connect(staged)) as new:
            new.backup(self._connection)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _sound_counters(connection: sqlite3.Connection) -> dict[str, int] | None:
    if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
        return None
    found = {str(name): int(value) for name, value in connection.execute(_SQL["counters"])}
    return found if found.keys() >= {"fence", "task"} else None


def _prepare(
    state: StateDirectory, source: Path, staged: Path, present: dict[str, int] | None, replaced: Path
) -> Restored:
    """Let the staged ledger go on from the highest numbers, and make it one durable file."""
    with closing(Store(staged, SystemClock())) as store:
        ledger = SqliteLedger(store)
        least = _least_counters(ledger.counters(), present, fences_of_directories(state.runs))
        with ledger.transaction():
            ledger.raise_counters(least)
            ledger.note("ledger.restored", {"from": on_one_line(str(source)), **least})
        runs, events = ledger.sizes()
    with closing(sqlite3.connect(staged)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        (ready,) = connection.execute(_SQL["ready_tasks"]).fetchone()
    sync(staged)
    return Restored(state.ledger, replaced if state.ledger.exists() else None, least["fence"], runs, events, ready)


def _least_counters(backup: dict[str, int], present: dict[str, int] | None, fences: list[int]) -> dict[str, int]:
    known = max(backup["fence"], present["fence"] if present is not None else 0)
    fence = max([backup["fence"], *plausible(fences, known)])
    if present is None:
        return {"fence": fence + UNKNOWN_NUMBERS, "task": backup["task"] + UNKNOWN_NUMBERS}
    return {"fence": max(fence, present["fence"]), "task": max(backup["task"], present["task"])}


def _put_in_place(ledger: Path, staged: Path, replaced: Path) -> None:
    if _is_open_somewhere(ledger):
        raise LedgerBusy(f"cannot replace the damaged ledger {ledger}: a process has it open; end that process first")
    if ledger.is_symlink() or (ledger.exists() and not ledger.is_file()):
        ledger.rename(replaced)
    elif ledger.exists():
        os.link(ledger, replaced)
        with draft_beside(ledger) as draft:
            draft.write_bytes(PLACEHOLDER)
            sync(draft)
            draft.replace(ledger)
        sync(ledger.parent)
    for suffix in ("-wal", "-shm", "-journal"):
        beside = ledger.with_name(ledger.name + suffix)
        if beside.exists():
            beside.rename(replaced.with_name(replaced.name + suffix))
    sync(ledger.parent)
    staged.replace(ledger)
    sync(ledger.parent)


def _is_open_somewhere(path: Path) -> bool:
    """A connection in WAL mode keeps a POSIX lock on its file for as long as it is open (sqlite.org/wal.html)."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return False
    file_id = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    return any(file_id in line.split() for line in Path("/proc/locks").read_text().splitlines())


def _has_content(path: Path) -> bool:
    return not path.is_symlink() and path.is_file() and path.stat().st_size > 0


def _bring_back(artifacts: Returning, source: Path) -> BroughtBack:
    try:
        return artifacts.bring_back()
    except OSError as error:
        raise OperationsCenterError(
            on_one_line(
                f"cannot bring back the artifacts of {source}, but its ledger is restored: {error}; "
                "correct that and restore it once more"
            )
        ) from None
