"""A heartbeat that somebody else may have written says nothing, and holds nobody up."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from operations_center.pulse import LIMIT, Pulse, read_pulse, write_pulse

PULSE = Pulse(
    pid=1, start_ticks=1, boot_id="b", state="ready", started_at=1, heartbeat_at=2, heartbeat_mono=3, details={"a": 1}
)
TEXT = msgspec.json.encode(PULSE)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        TEXT.replace(b'"a":1', b'"a":' + b"[" * 100_000 + b"]" * 100_000),
        TEXT.replace(b'"pid":1', b'"pid":0'),
        TEXT.replace(b'"pid":1', b'"pid":-1'),
        TEXT.replace(b'"pid":1', b'"pid":99999999999999999999999'),
        TEXT.replace(b'"started_at":1', b'"started_at":9223372036854775807'),
        TEXT.replace(b'"heartbeat_at":2', b'"heartbeat_at":1e300'),
        TEXT + b" " * LIMIT,
    ],
)
def test_rubbish_says_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "pulse").write_bytes(text)
    assert read_pulse(tmp_path / "pulse") is None


def link_to_a_pulse(path: Path) -> None:
    path.with_name("real").write_bytes(TEXT)
    path.symlink_to("real")


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, link_to_a_pulse])
def test_what_is_no_file_says_nothing_and_is_written_over(plant: Callable[[Path], object], tmp_path: Path) -> None:
    plant(tmp_path / "pulse")
    assert read_pulse(tmp_path / "pulse") is None
    write_pulse(tmp_path / "pulse", PULSE)
    assert read_pulse(tmp_path / "pulse") == PULSE


def test_detail_of_another_kind_is_not_there() -> None:
    assert (PULSE.detail("a", int), PULSE.detail("a", str), PULSE.detail("b", int)) == (1, None, None)
