"""What stands in the way of a state directory."""

import multiprocessing
from pathlib import Path

from operations_center.state_directory import StateDirectory


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
