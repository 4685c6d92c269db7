"""Backup, restore and prune, killed at every point where they change something outside (``tests.points``).

What a person reads or uses afterwards is whole: a backup has a manifest only when all of it is there, a ledger is the
old or the new one, artifacts come back with the next restore at the latest, a run is pruned with everything that
belongs to it or is found again by the next prune. The suite takes every third point; all with
``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.boards.local import NewTask
from operations_center.care.backup import back_up
from operations_center.care.contents import content_of
from operations_center.care.manifest import artifacts_of, manifest_of, read_manifest
from operations_center.care.restore import restore
from operations_center.care.retention import prune_closed_runs
from operations_center.clock import SystemClock
from operations_center.config import load_config
from operations_center.errors import OperationsCenterError
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import Outcome, Proof
from operations_center.outcomes import Ending
from operations_center.store import Store
from operations_center.wiring import Center
from tests.crash.stage import Stage, Template
from tests.runs import admit, dead_process
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(1800 if EVERY_POINT else 300)

RUNS = 3
SHARE = 1 if EVERY_POINT else 3

CUT_OFF = 20_000
"""What is left of a ledger that is damaged, in bytes."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Some closed runs with their directories, and a backup from before the last of them."""
    template = Template.make(tmp_path_factory.mktemp("template"), tasks=RUNS)
    nobody = dead_process()
    for number in range(1, RUNS + 1):
        with template.fleet.center() as center:
            if number == RUNS:
                back_up_to(template.fleet.root / "before.db", center)
                shutil.rmtree(next(center.state.runs.glob("r1-*")) / "artifacts")
            run = admit(center, f"t{number}", nobody)
            directory = center.state.run(run.run_id)
            directory.mkdir()
            (directory / "stdout").write_text("said\n")
            (directory / "artifacts").mkdir()
            (directory / "artifacts" / "made").write_text(run.run_id)
            ending = Ending(Outcome.FAILED, Proof.EXIT_RECORDED, "exit code 1", exit_code=1)
            assert center.settlement.end(run, ending, nobody) is not None
    return template


def killed_at_points(
    template: Template, root: Path, body: Callable[[Stage], object], check: Callable[[Stage], object]
) -> int:
    """How many steps there were at which something outside was changed."""
    for step in itertools.count(1, SHARE):
        with template.staged(root / str(step)) as stage:
            process = stage.stepped(lambda: body(stage), step)
            if process.where is None:
                assert process.wait() == 0
                check(stage)
                return step - 1
            process.kill()
            assert os.WTERMSIG(process.wait()) == signal.SIGKILL
            check(stage)
    raise AssertionError("unreachable")


def test_a_backup_is_whole_or_not_there_and_the_next_one_works(template: Template, tmp_path: Path) -> None:
    assert killed_at_points(template, tmp_path, back_it_up, check_backups) >= 20


def back_it_up(stage: Stage) -> None:
    with stage.center() as center:
        back_up_to(stage.fleet.root / "copy.db", center)


def back_up_to(path: Path, center: Center) -> None:
    back_up(center.ledger, center.state.runs, path, 0, with_artifacts=True)


def check_backups(stage: Stage) -> None:
    copy = stage.fleet.root / "copy.db"
    if manifest_of(copy).exists():
        assert_all_there(copy)
    if copy.exists():
        assert_whole(copy, RUNS)
    for path in (copy, artifacts_of(copy)):
        if path.exists():
            with pytest.raises(OperationsCenterError, match="not overwritten"):
                back_it_up(stage)
            path.rename(path.with_name(f"{path.name} aside"))
    back_it_up(stage)
    assert_all_there(copy)
    # It is opened for writing, and no longer what the manifest says.
    assert_whole(copy, RUNS)
    assert stage.broken() == []


def assert_all_there(copy: Path) -> None:
    manifest = read_manifest(manifest_of(copy))
    assert manifest is not None
    assert manifest.ledger.sha256 == content_of(copy).sha256
    # The first of those before the last has lost its own.
    assert len(manifest.artifacts.files) == RUNS - 1
    for each in manifest.artifacts.files:
        assert content_of(artifacts_of(copy) / each.run_id / each.name).sha256 == each.sha256


def assert_whole(ledger: Path, runs: int) -> None:
    store = Store(ledger, SystemClock())
    try:
        assert SqliteLedger(store).verify() == []
        assert SqliteLedger(store).sizes()[0] == runs
    finally:
        store.close()


def test_a_restore_leaves_the_old_ledger_or_the_new_one_and_the_next_one_works(
    template: Template, tmp_path: Path
) -> None:
    assert killed_at_points(template, tmp_path, bring_back, check_ledger) >= 50


def bring_back(stage: Stage) -> None:
    restore(load_config(stage.fleet.root / "operations_center.toml", {}), stage.fleet.root / "before.db")


def check_ledger(stage: Stage) -> None:
    with stage.center() as center:
        assert center.ledger.sizes()[0] in (RUNS - 1, RUNS)
    assert stage.broken() == []
    bring_back(stage)
    assert stage.broken() == []
    assert_artifacts_are_back(stage)
    with stage.center() as center:
        assert center.ledger.sizes()[0] == RUNS - 1
        (task_id,) = center.board.add([NewTask("the next", "goal")])
        assert admit(center, task_id, dead_process()).fence > RUNS


def assert_artifacts_are_back(stage: Stage) -> None:
    runs = stage.fleet.state.runs
    assert len(os.listdir(runs)) == RUNS
    assert all((run / "artifacts" / "made").read_text() == run.name for run in runs.iterdir())


def test_a_damaged_ledger_is_replaced_or_says_what_to_do_and_the_next_restore_works(
    template: Template, tmp_path: Path
) -> None:
    assert killed_at_points(template, tmp_path, replace_damaged, check_replaced) >= 50


def replace_damaged(stage: Stage) -> None:
    damage(stage)
    bring_back(stage)


def damage(stage: Stage) -> None:
    ledger = stage.fleet.state.ledger
    if ledger.stat().st_size > CUT_OFF:
        os.truncate(ledger, CUT_OFF)


def check_replaced(stage: Stage) -> None:
    try:
        assert stage.broken() == []
    except OperationsCenterError as error:
        # Neither an empty ledger nor a half one.
        assert "ledger restore" in str(error)
    bring_back(stage)
    assert stage.broken() == []
    assert_artifacts_are_back(stage)


def test_a_prune_is_completed_by_the_next(template: Template, tmp_path: Path) -> None:
    assert killed_at_points(template, tmp_path, prune, check_pruned) >= 30


def prune(stage: Stage) -> None:
    with stage.center() as center:
        prune_closed_runs(center.ledger, center.state.runs, older_than_ms=-1_000, now_wall=center.clock.now().wall)


def check_pruned(stage: Stage) -> None:
    assert stage.broken() == []
    prune(stage)
    assert stage.broken() == []
    with stage.center() as center:
        assert center.ledger.sizes()[0] == 0
        assert list(center.state.runs.iterdir()) == []
        assert len(center.board.tasks()) == RUNS
