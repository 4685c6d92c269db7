"""Wake-ups go through FIFOs of ours, and through nothing else that lies in their place."""

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.wakeups import WakeUp, wake, wake_everybody


def is_woken(waiting: WakeUp) -> bool:
    return bool(select.select([waiting], [], [], 0)[0])


def test_nothing_but_fifos_is_written_into(tmp_path: Path) -> None:
    directory, precious = tmp_path / "wake", tmp_path / "precious"
    directory.mkdir()
    precious.write_text("precious")
    (directory / "link").symlink_to(precious)
    os.link(precious, directory / "file")
    (directory / "directory").mkdir()
    waiting = WakeUp(directory, "role")
    wake_everybody(directory)
    for name in os.listdir(directory):
        wake(directory, name)
    assert is_woken(waiting)
    assert precious.read_text() == "precious"
    waiting.close()


def test_nobody_is_woken_through_a_link_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    waiting = WakeUp(tmp_path / "elsewhere", "role")
    (tmp_path / "wake").symlink_to("elsewhere")
    wake_everybody(tmp_path / "wake")
    assert not is_woken(waiting)
    waiting.close()


def link(path: Path) -> None:
    path.symlink_to("/dev/null")


def full_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


@pytest.mark.parametrize("plant", [link, full_directory, Path.touch])
def test_what_is_in_the_place_of_a_fifo_is_set_aside(plant: Callable[[Path], object], tmp_path: Path) -> None:
    plant(tmp_path / "role")
    waiting = WakeUp(tmp_path, "role")
    wake(tmp_path, "role")
    assert is_woken(waiting)
    assert len(list(tmp_path.glob("role.set-aside-*"))) == 1
    waiting.close()
