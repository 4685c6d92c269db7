"""The end of a file that is replaced while it is followed."""

from collections.abc import Iterable
from pathlib import Path

from operations_center.cli.tail import Piece, Tail


def shown(pieces: Iterable[Piece]) -> bytes:
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def replace(path: Path, content: bytes) -> None:
    draft = path.with_name("draft")
    draft.write_bytes(content)
    draft.rename(path)


def test_a_file_whose_middle_was_dropped_is_not_shown_again(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"head\n" + b"middle\n" * 10_000 + b"tail\n" * 1_000)
    tail = Tail("stdout", path)
    shown(tail.begin(1))
    replace(path, b"head\n[dropped]\n" + b"tail\n" * 1_000)
    assert shown(tail.more()) == b""
    with path.open("ab") as file:
        file.write(b"more\n")
    assert shown(tail.more()) == b"more\n"


def test_a_file_with_another_end_is_shown_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n" * 1_000)
    tail = Tail("log", path)
    shown(tail.begin(1))
    replace(path, b"new\n")
    assert shown(tail.more()) == b"new\n"
