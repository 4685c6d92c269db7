"""ledger verify, backup, restore, prune."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from operations_center.care import drafts as drafts_module
from operations_center.care import restore as restore_module
from operations_center.care.manifest import manifest_of
from operations_center.care.older import UNKNOWN_NUMBERS
from operations_center.care.restore import restore
from operations_center.clock import SystemClock
from operations_center.config import load_config
from operations_center.errors import Unavailable
from operations_center.keeper.inspect import ProcessTable, TreeQuery, tree_of
from operations_center.keeper.launch import LaunchPlan, prepare, start
from operations_center.keeper.stop import kill
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.locks import take_lock
from operations_center.model import Run
from operations_center.store import Store
from tests.cli.command_line import CommandLine
from tests.cli.spoiling import replace_by_fifo
from tests.fleet import PATIENCE_S, wait_until

WRITER = """
import os
from pathlib import Path
from operations_center.boards.local import NewTask
from operations_center.config import load_config
from operations_center.wiring import open_center
center = open_center(load_config(Path("operations_center.toml"), os.environ))
while True:
    center.board.add([NewTask("from another process", "goal")] * 3)
    print("written", flush=True)
"""


@pytest.fixture
def writer(line: CommandLine) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that writes all the time."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER], cwd=line.root, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    yield process
    process.kill()
    process.communicate()


def titles(ledger: Path) -> set[str]:
    with closing(sqlite3.connect(ledger)) as connection:
        return {row[0] for row in connection.execute("SELECT title FROM tasks")}


def copy_of(line: CommandLine, name: str) -> Path:
    return Path(line("ledger", "backup", str(line.root / name)).out.strip())


def damage(line: CommandLine) -> None:
    """Overwrite pages in the middle, as a failing disk does."""
    with line.state.ledger.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 40_000)


def test_verify_finds_a_row_that_its_log_does_not_explain(line: CommandLine) -> None:
    run = line.closed_run()
    assert line("ledger", "verify", "--json").json == {"schema": 1, "ok": True, "differences": []}
    with closing(sqlite3.connect(line.state.ledger)) as connection:
        connection.execute("UPDATE runs SET outcome = 'failed'")
        connection.commit()
    found = line("ledger", "verify", "--json", expect=1).json
    assert found["ok"] is False
    (difference,) = found["differences"]
    assert f"run {run.run_id}: outcome is 'failed'" in difference


def test_a_backup_is_one_private_file_and_overwrites_nothing(line: CommandLine) -> None:
    line.closed_run()
    made = line("ledger", "backup", "copy.db", "--json").json
    path = Path(made["path"])
    assert (made["runs"], made["bytes"]) == (1, path.stat().st_size)
    assert path.stat().st_mode & 0o777 == 0o600
    configured = {".operations_center", "operations_center.toml", ".operations_center.toml.fleet"}
    beside = {*configured, "copy.db", "copy.db.manifest.json"}
    assert set(os.listdir(line.root)) == beside
    assert "not overwritten" in line("ledger", "backup", "copy.db", expect=1).complaint


def test_a_backup_in_a_directory_has_the_time_in_its_name(line: CommandLine) -> None:
    (line.root / "backups").mkdir()
    assert Path(line("ledger", "backup", "backups").out.strip()).parent == line.root / "backups"


@pytest.mark.parametrize("name", ["missing/copy.db", "x" * 300, "/proc/copy.db"])
def test_a_backup_that_cannot_be_written_is_one_line(line: CommandLine, name: str) -> None:
    assert line("ledger", "backup", name, expect=1).complaint.startswith("cannot write the backup")


@pytest.mark.usefixtures("writer")
def test_a_backup_made_while_others_write_is_whole(line: CommandLine) -> None:
    sizes = []
    for number in range(10):
        made = line("ledger", "backup", f"{number}.db", "--json").json
        with closing(Store(Path(made["path"]), SystemClock())) as store:
            ledger = SqliteLedger(store)
            assert ledger.verify() == []
            assert ledger.sizes() == (made["runs"], made["events"])
        sizes.append(made["events"])
    assert sizes == sorted(sizes)


def test_restore_brings_back_what_was_and_keeps_what_is(line: CommandLine) -> None:
    line.task("before")
    copy = copy_of(line, "copy.db")
    line.task("after")
    restored = line("ledger", "restore", str(copy), "--json").json
    assert titles(line.state.ledger) == {"before"}
    assert titles(Path(restored["replaced"])) == {"before", "after"}
    assert line("ledger", "verify").code == 0
    assert line.task("later") == "t3"


def test_restore_never_hands_out_a_fence_twice(line: CommandLine) -> None:
    line.closed_run()
    copy = copy_of(line, "copy.db")
    newest = [line.closed_run() for _ in range(3)][-1]
    assert line("ledger", "restore", str(copy), "--json").json["fence"] == newest.fence
    assert line.closed_run().fence == newest.fence + 1


def test_a_run_directory_knows_a_fence_that_the_ledger_has_forgotten(line: CommandLine) -> None:
    line.task()
    copy = copy_of(line, "copy.db")
    (line.state.runs / "r77-abcdef").mkdir()
    line("ledger", "restore", str(copy))
    assert line.closed_run().fence == 78


@pytest.mark.parametrize("lost", ["damaged", "missing", "rubbish", "empty"])
def test_fences_leap_when_the_present_ledger_cannot_say(line: CommandLine, lost: str) -> None:
    newest = line.closed_run()
    copy = copy_of(line, "copy.db")
    content = line.state.ledger.read_bytes()
    match lost:
        case "damaged":
            damage(line)
        case "missing":
            line.state.ledger.unlink()
        case "rubbish":
            line.state.ledger.write_bytes(b"rubbish" * 5000)
        case "empty":
            line.state.ledger.write_bytes(b"")
    restored = line("ledger", "restore", str(copy), "--json").json
    assert restored["fence"] == newest.fence + UNKNOWN_NUMBERS
    assert line("ledger", "verify").code == 0
    after = line.closed_run()
    assert after.fence == newest.fence + UNKNOWN_NUMBERS + 1
    assert after.task_id == f"t{1 + UNKNOWN_NUMBERS + 1}"
    if lost == "damaged":
        assert len(Path(restored["replaced"]).read_bytes()) == len(content)


def test_the_log_of_a_damaged_ledger_is_not_played_into_its_successor(line: CommandLine) -> None:
    line.task("before")
    copy = copy_of(line, "copy.db")
    with line.center() as center:
        # Killed with its write-ahead log unmerged: what a copy of the files made now looks like.
        center.ledger.note("test", {"padding": "x" * 50_000})
        wal = Path(f"{line.state.ledger}-wal").read_bytes()
    damage(line)
    Path(f"{line.state.ledger}-wal").write_bytes(wal)
    restored = line("ledger", "restore", str(copy), "--json").json
    assert line("ledger", "verify").code == 0
    assert titles(line.state.ledger) == {"before"}
    assert Path(restored["replaced"]).exists()


def test_a_process_that_has_a_replaced_ledger_open_cannot_write_it(line: CommandLine) -> None:
    line.task()
    with line.center() as center:
        line.state.ledger.rename(line.state.root / "away")
        with pytest.raises(Unavailable, match="was removed"):
            center.ledger.note("test", {})


@pytest.mark.usefixtures("writer")
def test_restore_under_a_writer_leaves_a_sound_ledger_that_he_goes_on_writing(
    line: CommandLine, writer: "subprocess.Popen[bytes]"
) -> None:
    copy = copy_of(line, "copy.db")
    line("ledger", "restore", str(copy))
    assert writer.stdout is not None
    os.set_blocking(writer.stdout.fileno(), False)
    writer.stdout.read()
    os.set_blocking(writer.stdout.fileno(), True)
    assert writer.stdout.readline().endswith(b"written\n")
    assert line("ledger", "verify").code == 0


def foreign_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()


def newer_ledger(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 999")


def inconsistent_ledger(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE tasks SET title = 'other'")
        connection.commit()


def damaged_ledger(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\x5a" * 60_000)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (Path.unlink, "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
        (replace_by_fifo, "is not a file"),
        (lambda path: path.write_bytes(b""), "no ledger of this program"),
        (lambda path: path.write_bytes(b"rubbish" * 5000), "not a database"),
        (foreign_database, "no ledger of this program"),
        (newer_ledger, "newer"),
        (inconsistent_ledger, "does not agree"),
        (damaged_ledger, "cannot restore"),
    ],
)
def test_restore_refuses_what_is_no_sound_backup(line: CommandLine, spoil: Callable[[Path], Any], told: str) -> None:
    line.task("before")
    copy = copy_of(line, "copy.db")
    line.task("after")
    manifest_of(copy).unlink()
    spoil(copy)
    assert told in line("ledger", "restore", str(copy), expect=1).complaint
    assert titles(line.state.ledger) == {"before", "after"}
    assert not list(line.state.root.glob("*before-restore*"))


def test_restore_refuses_the_present_ledger_as_its_own_backup(line: CommandLine) -> None:
    line.task()
    assert "itself" in line("ledger", "restore", str(line.state.ledger), expect=1).complaint
    assert line("ledger", "verify").code == 0


@pytest.mark.parametrize(
    "name", ["supervisor.lock", "watchers/goal.lock", "watchers/@watchdog.lock", "watchers/old.lock"]
)
def test_restore_refuses_while_somebody_works_on_the_ledger(line: CommandLine, name: str) -> None:
    line.task()
    copy = copy_of(line, "copy.db")
    held = take_lock(line.state.root / name, "test")
    assert str(os.getpid()) in line("ledger", "restore", str(copy), expect=75).complaint
    os.close(held)
    line("ledger", "restore", str(copy))


@pytest.fixture
def living(line: CommandLine) -> Iterator[Run]:
    """A run whose keeper and executor are real."""
    run = line.admit(line.task())
    directory = line.state.run(run.run_id)
    plan = LaunchPlan(
        run_id=run.run_id,
        run_directory=directory,
        argv=("sh", "-c", "echo begun; exec sleep 300"),
        environment={"PATH": os.environ["PATH"]},
        stdin=False,
        working_directory=None,
        prompt="",
        task_json=b"{}",
        timeout_ms=None,
        idle_timeout_ms=None,
        grace_ms=100,
        cgroup_parent=None,
    )
    prepare(plan)
    launched = start(plan)
    wait_until(lambda: has_begun(directory), "the executor")
    yield run
    end_tree(run.run_id)
    for child in launched.children:
        child.wait(PATIENCE_S)


def has_begun(run_directory: Path) -> bool:
    output = run_directory / "stdout"
    return output.exists() and output.read_text() == "begun\n"


def end_tree(run_id: str) -> None:
    while not (tree := tree_of(ProcessTable.scan(), TreeQuery(run_id))).is_empty:
        kill(tree)


@pytest.mark.parametrize(
    "spoil", [None, damage, lambda line: line.state.ledger.unlink()], ids=["sound", "damaged", "missing"]
)
def test_restore_refuses_while_a_run_lives(
    line: CommandLine, living: Run, spoil: Callable[[CommandLine], None] | None
) -> None:
    copy = copy_of(line, "copy.db")
    if spoil:
        spoil(line)
    assert living.run_id in line("ledger", "restore", str(copy), expect=75).complaint
    end_tree(living.run_id)
    line("ledger", "restore", str(copy))


def test_restore_refuses_a_run_that_is_just_being_started(line: CommandLine) -> None:
    run = line.admit(line.task())
    copy = copy_of(line, "copy.db")
    assert run.run_id in line("ledger", "restore", str(copy), expect=75).complaint


def killed_at(line: CommandLine, source: Path, step: int) -> bool:
    """Restore in a child that is killed before its ``step``-th line; False when it had not so many."""
    child = os.fork()
    if child == 0:
        _restore_and_die(line, source, step)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _restore_and_die(line: CommandLine, source: Path, step: int) -> None:
    ours = {restore_module.__file__, drafts_module.__file__}
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in ours:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    try:
        config = load_config(line.root / "operations_center.toml", {})
        sys.settrace(trace)
        restore(config, source)
        os._exit(0)
    finally:
        os._exit(1)


PARTS = 4
"""The steps are dealt out among so many tests, which can run at once."""


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("present", ["sound", "damaged"])
def test_restore_killed_before_any_of_its_steps_leaves_one_whole_ledger(
    line: CommandLine, present: str, part: int
) -> None:
    line.task("before")
    copy = copy_of(line, "copy.db")
    newest = [line.closed_run() for _ in range(2)][-1]
    if present == "damaged":
        damage(line)
    original = line.root / "original"
    shutil.copytree(line.state.root, original)
    step = 3 * (1 + part)
    while killed_at(line, copy, step):
        if present == "sound":
            assert titles(line.state.ledger) in ({"before"}, {"before", "a task"}), step
            assert line("ledger", "verify").code == 0, step
        elif line("ledger", "verify", expect=None).code == 0:
            assert titles(line.state.ledger) == {"before"}, step
        line("ledger", "restore", str(copy))
        assert line("ledger", "verify").code == 0, step
        assert line.closed_run().fence > newest.fence, step
        shutil.rmtree(line.state.root)
        shutil.copytree(original, line.state.root)
        step += 3 * PARTS
    assert step > 50
    assert titles(line.state.ledger) == {"before"}


def directory_of(line: CommandLine, run: Run) -> Path:
    directory = line.state.run(run.run_id)
    directory.mkdir()
    (directory / "stdout").write_text("output")
    return directory


def make_old(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (1_000_000, 1_000_000))


def test_prune_forgets_closed_runs_and_keeps_open_ones(line: CommandLine) -> None:
    closed, running = line.closed_run(), line.admit(line.task())
    gone, kept = directory_of(line, closed), directory_of(line, running)
    assert line("ledger", "prune", "--older-than", "1d", "--json").json["pruned"] == 0
    assert line("ledger", "prune", "--older-than", "0s", "--json").json["pruned"] == 1
    assert (gone.exists(), kept.exists()) == (False, True)
    assert [run["run_id"] for run in line("runs", "--json").json["runs"]] == [running.run_id]
    assert line("ledger", "verify").code == 0
    events = line("events", "--json").json["events"]
    assert closed.run_id not in {event["run_id"] for event in events if event["kind"].startswith("run.")}


def test_prune_removes_an_old_directory_that_no_run_names(line: CommandLine) -> None:
    line.task()
    old, young, strange = (line.state.runs / name for name in ("r900-abcdef", "r901-abcdef", "notes"))
    for directory in (old, young, strange):
        directory.mkdir()
    make_old(old, strange)
    line("ledger", "prune", "--older-than", "1d")
    assert (old.exists(), young.exists(), strange.exists()) == (False, True, True)


def test_prune_spares_what_still_lives_though_no_run_names_it(line: CommandLine, living: Run) -> None:
    directory = line.state.run(living.run_id)
    line.state.ledger.unlink()
    (line.state.root / "host-id").unlink()
    (line.root / ".operations_center.toml.fleet").unlink()
    moved = directory.rename(line.state.root / "aside")
    line.task()
    moved.rename(directory)
    make_old(*directory.iterdir(), directory)
    line("ledger", "prune", "--older-than", "1d")
    assert directory.exists()


def test_prune_removes_directories_that_an_executor_made_read_only(line: CommandLine) -> None:
    run = line.closed_run()
    directory = directory_of(line, run)
    (directory / "cache").mkdir()
    (directory / "cache" / "file").write_text("")
    (directory / "cache").chmod(0o500)
    assert line("ledger", "prune", "--older-than", "0s", "--json").json["pruned"] == 1
    assert not directory.exists()


def test_prune_removes_directories_that_an_executor_closed_to_us(line: CommandLine) -> None:
    directory = line.state.run(line.closed_run().run_id)
    (directory / "inner" / "most").mkdir(parents=True)
    for path in (directory / "inner" / "most", directory / "inner", directory):
        path.chmod(0)
    line("ledger", "prune", "--older-than", "0s")
    assert not directory.exists()


def test_prune_follows_no_link_out_of_a_run_directory(line: CommandLine) -> None:
    directory = directory_of(line, line.closed_run())
    outside = line.root / "outside"
    outside.mkdir()
    (outside / "file").write_text("")
    (directory / "link").symlink_to(outside)
    line("ledger", "prune", "--older-than", "0s")
    assert (outside / "file").exists()
    assert not directory.exists()


def test_prune_takes_up_what_a_killed_one_left(line: CommandLine) -> None:
    run = line.closed_run()
    directory = directory_of(line, run)
    shutil.rmtree(directory)
    assert line("ledger", "prune", "--older-than", "0s", "--json").json["pruned"] == 1


@pytest.mark.parametrize("words", [[], ["--older-than", "soon"], ["--older-than", "-1d"]])
def test_prune_wants_a_duration(line: CommandLine, words: list[str]) -> None:
    line("ledger", "prune", *words, expect=2)


def test_prune_goes_on_until_nothing_is_left(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operations_center.care.retention.AT_MOST", 2)
    for _ in range(5):
        line.closed_run()
    assert line("ledger", "prune", "--older-than", "0s", "--json").json["pruned"] == 5
