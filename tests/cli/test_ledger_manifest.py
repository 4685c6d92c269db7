"""A backup's manifest and artifacts: what is taken along, what a restore compares, and what it brings back."""

import hashlib
import json
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from operations_center.care.manifest import artifacts_of, manifest_of
from operations_center.model import Run
from operations_center.store import SCHEMA
from tests.cli.command_line import CommandLine
from tests.cli.spoiling import replace_by_fifo, replace_by_link


def artifacts_of_run(line: CommandLine, run: Run) -> Path:
    return line.state.run(run.run_id) / "artifacts"


def make(line: CommandLine, run: Run, **contents: bytes) -> None:
    directory = artifacts_of_run(line, run)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)


def took_along(line: CommandLine, name: str = "copy.db") -> Path:
    return Path(line("ledger", "backup", "--artifacts", str(line.root / name)).out.strip())


def manifest(copy: Path) -> Any:
    return json.loads(manifest_of(copy).read_text())


def change_manifest(copy: Path, change: Callable[[Any], object]) -> None:
    document = manifest(copy)
    change(document)
    manifest_of(copy).write_text(json.dumps(document))


def everything_below(root: Path) -> dict[str, bytes | None]:
    """But for locks, which a restore takes, and what SQLite makes beside a ledger that is read."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if path.suffix != ".lock" and not path.name.startswith("ledger.")
    }


@pytest.fixture
def run(line: CommandLine) -> Run:
    """A closed run that has made a film and a note."""
    run = line.closed_run()
    make(line, run, film=b"\x00film" * 1000, note=b"seen")
    return run


@pytest.mark.parametrize("options", [[], ["--artifacts"]])
def test_the_manifest_has_schema_counts_and_hashes_of_ledger_and_artifacts(
    line: CommandLine, run: Run, options: list[str]
) -> None:
    made = line("ledger", "backup", "copy.db", "--json", *options).json
    copy = Path(made["path"])
    assert Path(made["manifest"]) == manifest_of(copy)
    assert manifest_of(copy).stat().st_mode & 0o777 == 0o600
    document = manifest(copy)
    told = document["ledger"]
    assert told["sha256"] == made["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert (told["bytes"], told["schema"]) == (copy.stat().st_size, SCHEMA)
    assert told["tables"] == made["tables"]
    assert (told["tables"]["runs"], told["tables"]["tasks"], told["tables"]["events"]) == (1, 1, made["events"])
    assert document["artifacts"]["files"] == [
        {
            "run_id": run.run_id,
            "name": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "mode": f"{(artifacts_of_run(line, run) / name).stat().st_mode & 0o777:04o}",
        }
        for name, content in (("film", b"\x00film" * 1000), ("note", b"seen"))
    ]
    assert (made["artifact_files"], made["artifact_bytes"]) == (2, 5004)
    assert document["artifacts"]["taken"] is bool(options)
    assert artifacts_of(copy).exists() is bool(options)
    assert made["artifacts"] == (str(artifacts_of(copy)) if options else None)


def test_a_change_of_the_original_does_not_change_what_was_taken_along(line: CommandLine, run: Run) -> None:
    taken = artifacts_of(took_along(line)) / run.run_id / "note"
    with (artifacts_of_run(line, run) / "note").open("r+b") as file:
        file.write(b"SEEN")
    assert taken.read_bytes() == b"seen"
    assert taken.stat().st_mode & 0o777 == 0o600


def test_what_is_no_regular_file_is_left_out_and_named(
    line: CommandLine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = artifacts_of_run(line, run)
    (line.root / "secret").write_text("secret")
    (directory / "link").symlink_to(line.root / "secret")
    os.mkfifo(directory / "fifo")
    (directory / "inner").mkdir()
    # By a short name: a socket's path may have 107 bytes.
    with monkeypatch.context() as inside, socket.socket(socket.AF_UNIX) as made:
        inside.chdir(directory)
        made.bind("socket")
    answer = line("ledger", "backup", "copy.db", "--artifacts", "--json").json
    assert {each["name"] for each in answer["left_out"]} == {"link", "fifo", "inner", "socket"}
    assert all(each["run_id"] == run.run_id for each in answer["left_out"])
    assert sorted(os.listdir(artifacts_of(line.root / "copy.db") / run.run_id)) == ["film", "note"]
    assert manifest(line.root / "copy.db")["artifacts"]["left_out"] == answer["left_out"]


@pytest.mark.parametrize("linked", ["run", "artifacts"])
def test_a_directory_that_is_a_link_leads_no_backup_elsewhere(line: CommandLine, run: Run, linked: str) -> None:
    directory = line.state.run(run.run_id) if linked == "run" else artifacts_of_run(line, run)
    directory.rename(line.root / "elsewhere")
    directory.symlink_to(line.root / "elsewhere")
    answer = line("ledger", "backup", "copy.db", "--artifacts", "--json").json
    assert [(each["run_id"], each["name"]) for each in answer["left_out"]] == [(run.run_id, None)]
    assert answer["artifact_files"] == 0


def test_a_name_that_is_no_text_goes_there_and_back(line: CommandLine, run: Run) -> None:
    path = os.fsencode(artifacts_of_run(line, run)) + b"/\xff\n"
    Path(os.fsdecode(path)).write_bytes(b"odd")
    copy = took_along(line)
    os.unlink(path)
    assert line("ledger", "restore", str(copy), "--json").json["artifacts_restored"] == 1
    assert Path(os.fsdecode(path)).read_bytes() == b"odd"


def test_a_directory_that_no_run_names_is_not_taken_along(line: CommandLine, run: Run) -> None:
    shutil.copytree(line.state.run(run.run_id), line.state.runs / "r0-abcdef")
    files = manifest(took_along(line))["artifacts"]["files"]
    assert {each["run_id"] for each in files} == {run.run_id}


def test_restore_brings_artifacts_back_with_their_modes(line: CommandLine, run: Run) -> None:
    (artifacts_of_run(line, run) / "note").chmod(0o440)
    copy = took_along(line)
    (artifacts_of_run(line, run) / "note").unlink()
    answer = line("ledger", "restore", str(copy), "--json").json
    assert (answer["artifacts_restored"], answer["artifacts_present"], answer["left_out"]) == (1, 1, [])
    assert answer["manifest"] == str(manifest_of(copy))
    note = artifacts_of_run(line, run) / "note"
    assert (note.read_bytes(), note.stat().st_mode & 0o777) == (b"seen", 0o440)
    assert os.listdir(line.state.runs) == [run.run_id]


def test_restore_into_an_empty_state_directory_brings_everything_back(line: CommandLine, run: Run) -> None:
    copy = took_along(line)
    shutil.rmtree(line.state.root)
    assert line("ledger", "restore", str(copy), "--json").json["artifacts_restored"] == 2
    assert (artifacts_of_run(line, run) / "film").read_bytes() == b"\x00film" * 1000
    assert line("ledger", "verify").code == 0
    assert line("ledger", "restore", str(copy), "--json").json["artifacts_present"] == 2


def test_restore_overwrites_no_artifact_that_differs(line: CommandLine, run: Run) -> None:
    copy = took_along(line)
    make(line, run, note=b"new!")
    (artifacts_of_run(line, run) / "film").unlink()
    (artifacts_of_run(line, run) / "film").symlink_to(line.root / "nowhere")
    answer = line("ledger", "restore", str(copy), "--json").json
    assert [each["name"] for each in answer["left_out"]] == ["film", "note"]
    assert answer["artifacts_restored"] == 0
    assert (artifacts_of_run(line, run) / "note").read_bytes() == b"new!"
    assert not (line.root / "nowhere").exists()
    assert "not brought back" in line("ledger", "restore", str(copy)).err


def test_an_open_run_without_a_directory_gets_none_back(line: CommandLine) -> None:
    """With one it would pass for lost, and its task would run again."""
    run = line.admit(line.task())
    make(line, run, note=b"seen")
    copy = took_along(line)
    line.close(run)
    shutil.rmtree(line.state.run(run.run_id))
    answer = line("ledger", "restore", str(copy), "--json").json
    assert [each["run_id"] for each in answer["left_out"]] == [run.run_id]
    assert not line.state.run(run.run_id).exists()


def test_a_backup_without_a_manifest_is_restored_and_said_to_have_none(line: CommandLine, run: Run) -> None:
    copy = took_along(line)
    manifest_of(copy).unlink()
    make(line, run, note=b"new!")
    assert sum("no manifest" in said for said in line("ledger", "restore", str(copy)).out.splitlines()) == 1
    assert line("ledger", "restore", str(copy), "--json").json["manifest"] is None


def test_a_link_to_a_backup_is_compared_with_the_manifest_of_what_it_leads_to(line: CommandLine, run: Run) -> None:
    copy = took_along(line)
    (line.root / "latest").symlink_to(copy)
    answer = line("ledger", "restore", "latest", "--json").json
    assert (answer["manifest"], answer["artifacts_present"]) == (str(manifest_of(copy)), 2)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def forge(change: Callable[[Any], object]) -> Callable[[Path, Path], object]:
    return lambda copy, _: change_manifest(copy, change)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda copy, _: append(copy), " bytes, not "),
        (lambda copy, _: flip(copy), "it has the sha256 "),
        (forge(lambda told: told["ledger"]["tables"].update(runs=7)), "its table runs has 1 rows, not 7;"),
        (forge(lambda told: told["ledger"]["tables"].update(runs=7, tasks=9)), "not 7 (and 1 more)"),
        (forge(lambda told: told["ledger"]["tables"].update(more=1)), "its table more has no rows, not 1;"),
        (forge(lambda told: told["ledger"].update(schema=0)), f"its schema is {SCHEMA}, not 0"),
        (lambda _, taken: (taken / "note").unlink(), "/note is missing;"),
        (lambda _, taken: shutil.rmtree(taken.parent), "/film is missing (and 1 more)"),
        (lambda _, taken: append(taken / "note"), "/note has 5 bytes, not 4"),
        (lambda _, taken: flip(taken / "note"), "/note has the sha256 "),
        (lambda _, taken: replace_by_fifo(taken / "note"), "/note cannot be read: it is a FIFO"),
        (lambda _, taken: replace_by_link(taken / "note"), "it is a link"),
        (lambda copy, _: manifest_of(copy).write_text('{"schema": 1'), "cannot be read"),
        (lambda copy, _: manifest_of(copy).write_text("[" * 100_000), "nested too deeply"),
        (lambda copy, _: replace_by_fifo(manifest_of(copy)), "it is a FIFO"),
        (forge(lambda told: told.update(schema=2)), "cannot be read"),
        (forge(lambda told: told["artifacts"]["files"][0].update(name="../../../made")), "cannot be read"),
        (forge(lambda told: told["artifacts"]["files"][0].update(name="..")), "cannot be read"),
        (forge(lambda told: told["artifacts"]["files"][0].update(run_id="..")), "cannot be read"),
        (forge(lambda told: told["artifacts"]["files"][0].update(run_id="r9-abcdef")), "does not know"),
    ],
)
def test_restore_refuses_what_differs_from_its_manifest_and_changes_nothing(
    line: CommandLine, run: Run, spoil: Callable[[Path, Path], Any], told: str
) -> None:
    copy = took_along(line)
    # It would be brought back.
    (artifacts_of_run(line, run) / "film").unlink()
    after = line.closed_run()
    before = everything_below(line.state.root)
    spoil(copy, artifacts_of(copy) / run.run_id)
    complaint = line("ledger", "restore", str(copy), expect=1).complaint
    assert complaint.startswith(f"cannot restore {copy}: ")
    assert told in complaint
    assert everything_below(line.state.root) == before
    assert after.run_id in {each["run_id"] for each in line("runs", "--json").json["runs"]}


@contextmanager
def room_for_files_of(size: int) -> Iterator[None]:
    """A longer one cannot be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_backup_that_has_no_room_for_an_artifact_leaves_nothing(line: CommandLine, run: Run) -> None:
    make(line, run, long=bytes(3_000_000))
    with room_for_files_of(2_000_000):
        complaint = line("ledger", "backup", "copy.db", "--artifacts", expect=1).complaint
    assert complaint.startswith("cannot write the backup")
    assert sorted(os.listdir(line.root)) == [
        ".operations_center",
        ".operations_center.toml.fleet",
        "operations_center.toml",
    ]


def test_a_restore_that_has_no_room_for_an_artifact_changes_nothing(line: CommandLine, run: Run) -> None:
    make(line, run, long=bytes(3_000_000))
    copy = took_along(line)
    shutil.rmtree(artifacts_of_run(line, run))
    line.closed_run()
    before = everything_below(line.state.root)
    with room_for_files_of(2_000_000):
        assert "nothing was changed" in line("ledger", "restore", str(copy), expect=1).complaint
    assert everything_below(line.state.root) == before
    assert len(line("runs", "--json").json["runs"]) == 2
    assert line("ledger", "restore", str(copy), "--json").json["artifacts_restored"] == 3


@pytest.mark.parametrize("name", ["copy.db", "copy.db.manifest.json", "copy.db.artifacts"])
def test_a_backup_overwrites_none_of_its_names(line: CommandLine, run: Run, name: str) -> None:
    (line.root / name).write_text("mine")
    assert f"{name} exists already" in line("ledger", "backup", "copy.db", "--artifacts", expect=1).complaint
    assert (line.root / name).read_text() == "mine"
    assert len(list(line.root.glob("*copy.db*"))) == 1


def test_the_manifest_of_a_backup_that_was_moved_away_makes_room_for_the_next(line: CommandLine, run: Run) -> None:
    line("ledger", "backup", "copy.db")
    (line.root / "copy.db").rename(line.root / "copy.db.1")
    line.closed_run()
    line("ledger", "backup", "copy.db")
    assert manifest(line.root / "copy.db")["ledger"]["tables"]["runs"] == 2
    line("ledger", "restore", "copy.db")


def test_a_backup_whose_manifest_has_no_name_left_leaves_nothing(line: CommandLine, run: Run) -> None:
    name = "x" * 244
    assert line("ledger", "backup", name, "--artifacts", expect=1).complaint.startswith("cannot write the backup")
    assert sorted(os.listdir(line.root)) == [
        ".operations_center",
        ".operations_center.toml.fleet",
        "operations_center.toml",
    ]
