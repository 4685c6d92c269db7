"""What somebody else may have put in a file's place costs an error: no wait, no link that is followed, no stack."""

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from operations_center.files import (
    DEPTH,
    OPEN_LEVELS,
    RemovalBudget,
    decode_json,
    open_directory,
    open_fifo,
    open_file,
    read_file,
    remove_tree,
    write_atomically,
)


def plant_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def plant_directory(path: Path) -> None:
    path.mkdir()


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def plant_sparse_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


PLANTED = [plant_link, plant_fifo, plant_directory, plant_socket, plant_sparse_file]


@pytest.mark.parametrize("plant", PLANTED)
def test_reading_what_is_no_ordinary_file_is_an_error(plant: Callable[[Path], None], tmp_path: Path) -> None:
    plant(tmp_path / "file")
    with pytest.raises(OSError):
        read_file(tmp_path / "file", 4096)


def test_device_is_not_read() -> None:
    with pytest.raises(OSError, match="it is a device, not a file"):
        read_file("/dev/zero", 4096)


def test_file_is_read_up_to_its_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    assert read_file(path, 4096) == b"x" * 4096
    with pytest.raises(OSError, match="it is larger than 4095 bytes") as caught:
        read_file(path, 4095)
    assert caught.value.errno == errno.EFBIG


def test_file_of_another_owner_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert read_file(tmp_path / "file", 9, owner=os.geteuid()) == b"x"
    with pytest.raises(OSError, match=f"it belongs to user {os.geteuid()}, not to user 4711"):
        read_file(tmp_path / "file", 9, owner=4711)


def test_files_are_opened_below_an_open_directory(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_text("x")
    (tmp_path / "link").symlink_to("below")
    directory = open_directory("below", dir_fd=(top := open_directory(tmp_path)))
    assert read_file("file", 9, dir_fd=directory) == b"x"
    with pytest.raises(OSError):
        open_directory("link", dir_fd=top)
    os.close(directory)
    os.close(top)


def test_new_file_is_private_and_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    os.close(open_file(tmp_path / "new", os.O_RDWR | os.O_CREAT))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="it is a link"):
        open_file(tmp_path / "link", os.O_RDWR | os.O_CREAT)
    assert not (tmp_path / "elsewhere").exists()


def test_only_a_fifo_is_opened_as_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.close(open_fifo(tmp_path / "fifo", os.O_RDWR))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="it is a file, not a FIFO"):
        open_fifo(tmp_path / "file", os.O_RDWR)


class Document(msgspec.Struct):
    details: dict[str, Any]


RUBBISH = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b'{"details": 1}',
    b'{"details": {"\\ud800": 1}}',
    b"[" * 200_000,
    b'{"details": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
    b'{"details": {"a": ' + b'{"b":' * 100 + b"1" + b"}" * 100 + b"}}",
]


@pytest.mark.parametrize("data", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_is_a_value_error_of_one_line(data: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        decode_json(data, Document)
    assert len(str(caught.value).splitlines()) == 1


def test_brackets_inside_of_text_are_no_nesting() -> None:
    text = '[{"\\' * 1000
    assert decode_json(msgspec.json.encode({"details": {"a": text, "b": [[]] * 100}}), Document).details["a"] == text


def test_text_without_an_end_is_read_once() -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="nested"):
        decode_json(b"[" * (DEPTH + 1) + b'"' + b'\\"' * 40_000, list)
    # From each of its quotes on it would be more than a minute.
    assert time.process_time() - began < 20


def test_atomic_write_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"one")
    write_atomically(tmp_path / "file", b"two", synced=True)
    assert (tmp_path / "file").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_passes_by_a_link_in_the_place_of_file_and_draft(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"kept")
    for name in ("file", f".file.{os.getpid()}"):
        (tmp_path / name).symlink_to("secret")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "secret").read_bytes() == b"kept"
    assert not (tmp_path / "file").is_symlink()


def test_atomic_write_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def make_deep(top: Path, levels: int, name: str) -> None:
    """Down by descriptors: no path reaches that far."""
    top.mkdir(exist_ok=True)
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)


def test_tree_too_deep_for_any_path_is_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "tree", 3000, "n" * 255)
    assert remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []


def test_spent_budget_leaves_the_rest_to_the_next_call(tmp_path: Path) -> None:
    make_deep(tmp_path / "tree", 10 * OPEN_LEVELS, "d")
    calls = 1
    while not remove_tree(tmp_path / "tree", RemovalBudget(entries=2 * OPEN_LEVELS, seconds=60)):
        calls += 1
    assert 5 <= calls <= 15
    assert os.listdir(tmp_path) == []
    make_deep(tmp_path / "tree", 3, "d")
    assert not remove_tree(tmp_path / "tree", RemovalBudget(entries=1000, seconds=0))


def test_directories_without_permissions_are_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "tree", 2 * OPEN_LEVELS, "d")
    for path in sorted((tmp_path / "tree").rglob("d"), reverse=True):
        path.chmod(0)
    (tmp_path / "tree").chmod(0)
    assert remove_tree(tmp_path / "tree")


def test_removal_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to("kept")
    assert remove_tree(tmp_path / "tree")
    assert remove_tree(tmp_path / "link")
    assert remove_tree(tmp_path / "never there")
    assert (tmp_path / "kept" / "file").exists()
    assert os.listdir(tmp_path) == ["kept"]
