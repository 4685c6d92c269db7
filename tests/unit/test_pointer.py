"""The pointer from a configuration to its state directory, and the places outside of a work tree."""

import os
from pathlib import Path

import pytest

from operations_center.places import name_for, user_state_home, work_tree_of
from operations_center.pointer import read_pointers, write_pointer


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    directory.mkdir()
    file = directory / "operations_center.toml"
    file.touch()
    return file


def noted(file: Path, environ: dict[str, str]) -> list[Path]:
    return [each.state_dir for each in read_pointers(file, environ)]


def test_a_pointer_lies_beside_the_configuration(file: Path, environ: dict[str, str]) -> None:
    write_pointer(file, file.with_name("state"), environ)
    (found,) = read_pointers(file, environ)
    assert (found.place, found.state_dir) == (file.with_name(f".{file.name}.fleet"), file.with_name("state"))
    assert found.place.stat().st_mode & 0o777 == 0o600


def test_a_pointer_in_a_work_tree_lies_where_no_stash_takes_it(file: Path, environ: dict[str, str]) -> None:
    (file.parent / ".git").mkdir()
    write_pointer(file, file.with_name("state"), environ)
    (found,) = read_pointers(file, environ)
    assert found.place.parent == Path(environ["HOME"], ".local/state/operations_center/fleets")
    assert set(os.listdir(file.parent)) == {"operations_center.toml", ".git"}


def test_two_configurations_in_one_directory_have_a_pointer_each(file: Path, environ: dict[str, str]) -> None:
    other = file.with_name("other.toml")
    write_pointer(file, file.with_name("a"), environ)
    write_pointer(other, file.with_name("b"), environ)
    assert (noted(file, environ), noted(other, environ)) == ([file.with_name("a")], [file.with_name("b")])


def test_a_place_that_takes_no_pointer_is_left_for_the_next(file: Path, environ: dict[str, str]) -> None:
    file.with_name(f".{file.name}.fleet").mkdir()
    write_pointer(file, file.with_name("state"), environ)
    assert noted(file, environ) == [file.with_name("state")]


def test_a_pointer_that_no_place_takes_is_done_without(file: Path, tmp_path: Path) -> None:
    file.with_name(f".{file.name}.fleet").mkdir()
    (tmp_path / "home").touch()
    write_pointer(file, file.with_name("state"), {"HOME": str(tmp_path / "home")})
    assert noted(file, {"HOME": str(tmp_path / "home")}) == []


@pytest.mark.parametrize("content", [b"", b"rubbish", b"[" * 1000, b'{"config_file": "/other", "state_dir": "/etc"}'])
def test_a_pointer_that_is_rubbish_or_of_another_file_says_nothing(
    file: Path, environ: dict[str, str], content: bytes
) -> None:
    file.with_name(f".{file.name}.fleet").write_bytes(content)
    assert noted(file, environ) == []


def test_a_fifo_or_a_link_in_the_place_of_a_pointer_says_nothing(file: Path, environ: dict[str, str]) -> None:
    place = file.with_name(f".{file.name}.fleet")
    os.mkfifo(place)
    assert noted(file, environ) == []
    place.unlink()
    write_pointer(file, file.with_name("state"), environ)
    place.rename(place.with_name("moved"))
    place.symlink_to("moved")
    assert noted(file, environ) == []


def test_a_work_tree_is_found_from_a_directory_that_is_yet_to_be_made(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: elsewhere")
    assert work_tree_of(tmp_path / "a" / "b") == tmp_path
    assert work_tree_of(Path("/nowhere")) is None


def test_the_users_state_directory_is_that_of_the_environment(tmp_path: Path) -> None:
    assert user_state_home({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/operations_center")
    assert user_state_home({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/state/operations_center")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_home_of_somebody_else_is_none_of_ours(tmp_path: Path, file: Path) -> None:
    environ = {"HOME": str(tmp_path / "theirs")}
    (tmp_path / "theirs").mkdir()
    assert user_state_home(environ) is not None
    os.chown(tmp_path / "theirs", 65534, 65534)
    assert user_state_home(environ) is None


def test_paths_have_names_of_their_own(tmp_path: Path) -> None:
    assert name_for(tmp_path / "a b" / "c\nd") != name_for(tmp_path / "a b" / "c d")
    assert name_for(Path("/")).startswith("root-")
    assert name_for(tmp_path / "my project").startswith("my-project-")
