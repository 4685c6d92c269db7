"""What stands in the way of a state directory."""

import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.errors import OperationsCenterError
from operations_center.state_directory import StateDirectory

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path / "parent" / "state")
    state.create()
    return state


def refusal(state: StateDirectory) -> str:
    with pytest.raises(OperationsCenterError) as refused:
        state.create()
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"cannot use the state directory {state.root}: ")
    return line.removeprefix(f"cannot use the state directory {state.root}: ")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o1777])
def test_directory_that_others_may_write_is_refused(state: StateDirectory, mode: int) -> None:
    state.root.chmod(mode)
    told = f"others may write it: its mode is {mode:04o}; `chmod go-w {state.root}`"
    assert refusal(state).startswith(told)


def test_directory_that_others_may_only_read_is_used(state: StateDirectory) -> None:
    state.root.chmod(0o755)
    state.create()


def test_directory_below_one_that_everybody_may_tidy_is_refused(state: StateDirectory) -> None:
    state.root.parent.chmod(0o777)
    assert refusal(state).startswith(f"{state.root.parent} may be written by others")
    state.root.parent.chmod(0o1777)
    state.create()


def test_directory_to_be_made_below_one_that_everybody_may_tidy_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    refusal(StateDirectory(tmp_path / "not" / "yet"))
    assert os.listdir(tmp_path) == []


@AS_ROOT
def test_directory_below_one_of_another_user_is_refused(state: StateDirectory) -> None:
    os.chown(state.root.parent, 4711, 4711)
    assert "belongs to user 4711" in refusal(state)


def test_link_in_the_place_of_the_directory_is_refused(state: StateDirectory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(state.root)
    assert refusal(StateDirectory(tmp_path / "link")).startswith("it is a link; set center.state_dir to where it leads")


def link(path: Path) -> None:
    path.symlink_to("../elsewhere")


def directory(path: Path) -> None:
    path.mkdir()


def of_another_user(path: Path) -> None:
    path.mkdir() if "." not in path.name else path.touch()
    os.chown(path, 4711, 4711)


def writable_by_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        *[(name, link) for name in ("wake", "runs", "logs", "ledger.turn", "host-id", "supervisor.lock")],
        *[(name, os.mkfifo) for name in ("wake", "ledger.turn", "ledger.db-journal", "startup.lock")],
        *[(name, directory) for name in ("ledger.db-wal", "drain.lock")],
        *[pytest.param(name, of_another_user, marks=AS_ROOT) for name in ("runs", "ledger.db-wal")],
        ("wake", writable_by_others),
    ],
)
def test_what_is_not_ours_in_it_is_refused_by_name(
    state: StateDirectory, name: str, plant: Callable[[Path], object]
) -> None:
    path = state.root / name
    if path.is_dir():
        path.rmdir()
    plant(path)
    assert str(path) in refusal(state)
    assert not (state.root.parent / "elsewhere").exists()


def test_git_takes_nothing_of_it(state: StateDirectory) -> None:
    repository = state.root.parent
    subprocess.run(["git", "init", "-q", repository], check=True)
    subprocess.run(["git", "-C", repository, "add", "-A"], check=True)
    assert subprocess.run(["git", "-C", repository, "ls-files"], check=True, capture_output=True).stdout == b""


def come_and_go(path: Path) -> None:
    while True:
        path.touch()
        path.unlink()


def test_a_log_that_goes_between_two_looks_is_no_obstacle(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.create()
    others = multiprocessing.get_context("fork").Process(target=come_and_go, args=(tmp_path / "ledger.db-wal",))
    others.start()
    try:
        assert {state.obstacle() for _ in range(5000)} == {None}
    finally:
        others.kill()
        others.join()
        others.close()
