"""Runs that print more than they may: head and tail are kept, and the loss is marked."""

import os
from pathlib import Path

import pytest

from operations_center.keeper.output import (
    OutputBounds,
    bound_ended,
    bound_running,
    kept_of,
    mark_of,
    sizes_of,
)
from tests.fleet import PATIENCE_S, wait_until

from .conftest import Bench

MIB = 1 << 20
UNTIL_TOLD = "until [ -e ../../go ]; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ((10, 20), [80, 90]),
        ((500, 20), [80, 50]),
        ((500, 0), [100, 50]),
        ((500, 500), [50, 50]),
        ((60, 500), [50, 50]),
        ((40, 500), [50, 60]),
    ],
)
def test_a_short_stream_leaves_its_share_to_the_other(sizes: tuple[int, int], kept: list[int]) -> None:
    assert kept_of(sizes, 100) == kept


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_what_a_run_prints_too_much_is_given_back_while_it_runs(bench: Bench) -> None:
    script = f"echo first; head -c 20000000 /dev/zero | tr '\\0' x; echo last; {UNTIL_TOLD}; echo after"
    plan, run = bench.launch("sh", "-c", script)
    stdout = plan.run_directory / "stdout"
    wait_until(lambda: stdout.exists() and stdout.read_bytes().endswith(b"last\n"), "its output")
    sizes = sizes_of(run.keeper)
    assert sizes is not None
    assert bound_running(run.keeper, sizes, MIB)
    assert allocated(stdout) <= MIB + 3 * 65536
    with stdout.open("rb") as file:
        hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        data = os.lseek(file.fileno(), hole, os.SEEK_DATA)
    assert hole <= MIB // 2 + 65536
    assert data >= sizes[0] - MIB // 2 - 65536
    (bench.directory / "go").touch()
    run.children[0].wait(timeout=PATIENCE_S)
    bound_ended(plan.run_directory, MIB)
    head, _, tail = stdout.read_bytes().partition(mark_of(20_000_017 - MIB))
    assert head.startswith(b"first\nx")
    assert tail.endswith(b"x" + b"last\nafter\n")
    assert len(head) + len(tail) == MIB + 1
    assert set(head + tail) <= set(b"first\nxlastafter")
    assert sizes_of(run.keeper) is None


def test_output_within_its_bound_stays_as_it_is(bench: Bench) -> None:
    plan = bench.finish("sh", "-c", "head -c 900000 /dev/urandom; head -c 100000 /dev/urandom >&2")
    before = [(plan.run_directory / name).read_bytes() for name in ("stdout", "stderr")]
    bound_ended(plan.run_directory, MIB)
    assert [(plan.run_directory / name).read_bytes() for name in ("stdout", "stderr")] == before


def test_the_timer_bounds_output_where_no_watcher_lives(bench: Bench) -> None:
    script = f"head -c 20000000 /dev/zero | tr '\\0' x; head -c 5000000 /dev/zero >&2; {UNTIL_TOLD}"
    plan, run = bench.launch("sh", "-c", script, max_output=MIB)
    names = [plan.run_directory / name for name in ("stdout", "stderr")]
    wait_until(lambda: sizes_of(run.keeper) == (20_000_000, 5_000_000), "its output")
    wait_until(lambda: sum(map(allocated, names)) <= MIB + 6 * 65536, "the timer to drop the middle")
    assert [path.stat().st_size for path in names] == [20_000_000, 5_000_000]
    (bench.directory / "go").touch()
    assert [child.wait(timeout=PATIENCE_S) for child in run.children] == [0, 0]


def test_bounds_are_kept_for_each_run_that_is_watched(bench: Bench) -> None:
    plan, run = bench.launch("sh", "-c", f"head -c 9000000 /dev/zero; {UNTIL_TOLD}")
    wait_until(lambda: sizes_of(run.keeper) == (9_000_000, 0), "its output")
    bounds = OutputBounds()
    bounds.watch(plan.run_id, run.keeper, MIB)
    assert [bounds.enforce(), bounds.enforce()] == [True, False]
    assert allocated(plan.run_directory / "stdout") <= MIB + 3 * 65536
    (bench.directory / "go").touch()


def test_what_lies_under_the_name_of_a_stream_is_not_rewritten(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * 2 * MIB)
    (tmp_path / "stdout").symlink_to(victim)
    os.mkfifo(tmp_path / "stderr")
    bound_ended(tmp_path, MIB)
    assert victim.stat().st_size == 2 * MIB
    (tmp_path / "stdout").unlink()
    os.link(victim, tmp_path / "stdout")
    bound_ended(tmp_path, MIB)
    assert victim.stat().st_size == 2 * MIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stderr", "stdout", "victim"]


def test_a_link_in_the_place_of_a_run_directory_has_nothing_shortened(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stdout").write_bytes(b"x" * 2 * MIB)
    (tmp_path / "run").symlink_to(elsewhere)
    with pytest.raises(OSError, match="it is a link"):
        bound_ended(tmp_path / "run", MIB)
    assert (elsewhere / "stdout").stat().st_size == 2 * MIB
