"""What a supervisor makes of what it finds: written by others meanwhile, removed, edited, or of another schema."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from operations_center.care.rollback import REASON, roll_back
from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.releases.config_copies import UNUSED_FOR_S, keep_copy, name_of, prune_config_copies
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import ReleaseState
from operations_center.releases.runtime import Runtime
from operations_center.store import SCHEMA
from operations_center.supervisor.deploying import Deploying
from operations_center.supervisor.image import why_not_start
from operations_center.supervisor.rollout import Become, Fleet, Member
from operations_center.wiring import Center
from tests.releases.clones import Clones

GOOD, STAGED, BAD = ReleaseState.GOOD, ReleaseState.STAGED, ReleaseState.BAD
OLD, NEW, NEWER = "1" * 40, "2" * 40, "3" * 40
LATER = 10**9


def release(center: Center, commit: str, state: ReleaseState, ledger_schema: int = SCHEMA) -> None:
    center.state.release(commit).mkdir(exist_ok=True)
    center.releases.record(commit, state, ledger_schema=ledger_schema)


def states(center: Center) -> dict[str, tuple[ReleaseState, str | None]]:
    return {each.commit: (each.state, each.reason) for each in center.releases.all()}


@contextmanager
def fleet_of(clones: Clones, commit: str | None = OLD) -> Iterator[tuple[Center, Version]]:
    """A fleet that runs this good release, and is at rest."""
    with clones.center() as center:
        if commit is not None:
            release(center, commit, GOOD)
        current = Version(commit, keep_copy(center.config.file, center.state))
        center.deployments.write(Deployment(current), "rollout.completed")
        yield replace(center, version=current), current
        assert center.ledger.verify() == []


def go_on(center: Center, **what: str | None) -> Deploying:
    deploying = Deploying(center, handed_over=True, handed_back=what.get("handed_back"))
    deploying.look_for_more()
    return deploying


def healthy(version: Version, me: Version | None = None) -> Fleet:
    return Fleet(me or version, 0, [Member("goal", version, ready_at=0, beat_at=LATER)])


def remove(clones: Clones, commit: str) -> None:
    clones.release(commit).rmdir()


def test_a_person_who_rolls_back_is_not_overruled_by_a_supervisor_that_has_not_heard_of_it(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        release(center, NEW, STAGED)
        deploying = go_on(center)
        with clones.center() as person:
            roll_back(person, None)
        assert deploying.next_move(healthy(Version(NEW, current.config)), LATER) != Become(Version(NEW, current.config))
        deployment = center.deployments.read()
        assert deployment is not None
        assert (deployment.current, deployment.step) == (current, Step.BACK)
        assert states(center)[NEW] == (BAD, REASON)


def test_what_was_staged_earlier_is_not_rolled_out_after_what_was_staged_later(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        release(center, NEW, STAGED)
        release(center, NEWER, STAGED)
        deploying = go_on(center)
        assert deploying.on_trial == Version(NEWER, current.config)
        assert states(center) == {OLD: (GOOD, None), NEWER: (STAGED, None)}


def test_a_staged_release_whose_directory_is_gone_is_not_rolled_out(clones: Clones) -> None:
    with fleet_of(clones) as (center, _):
        release(center, NEW, STAGED)
        remove(clones, NEW)
        assert go_on(center).on_trial is None


def test_a_release_whose_directory_goes_while_it_is_rolled_out_is_taken_back_and_not_called_bad(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        release(center, NEW, STAGED)
        deploying = go_on(center)
        remove(clones, NEW)
        deploying.look_for_more()
        assert (deploying.deployment.current, deploying.deployment.step) == (current, Step.BACK)
        assert states(center) == {OLD: (GOOD, None)}


def test_a_fleet_whose_release_is_gone_goes_on_with_the_installed_code(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        deploying = go_on(center)
        remove(clones, OLD)
        deploying.look_for_more()
        assert deploying.deployment == Deployment(Version(None, current.config))
        assert states(center) == {}


def test_a_copy_of_the_configuration_that_is_removed_under_a_fleet_is_written_again(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        copy = center.state.config_copy(current.config)
        content = copy.read_bytes()
        deploying = go_on(center)
        copy.unlink()
        deploying.look_for_more()
        assert copy.read_bytes() == content


def test_a_copy_of_the_configuration_that_is_lost_is_not_waited_for(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        lost, lost_too = Version(OLD, f"{1:016x}.toml"), Version(OLD, f"{2:016x}.toml")
        center.deployments.write(Deployment(lost).begun(lost_too), "rollout.begun")
        deploying = Deploying(center, handed_over=False, handed_back=None)
        assert (deploying.deployment.current, deploying.deployment.step) == (current, Step.BACK)


def test_a_torn_copy_of_the_configuration_is_written_anew(clones: Clones) -> None:
    with clones.center() as center:
        copy = center.state.config_copy(keep_copy(clones.config_file, center.state))
        copy.write_bytes(b"")
        keep_copy(clones.config_file, center.state)
        assert copy.read_bytes() == clones.config_file.read_bytes()


def test_a_changed_configuration_is_not_forgotten_when_the_disk_is_full(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet_of(clones) as (center, _):
        deploying = go_on(center)
        clones.configure(canary='"3s"')
        configs = center.state.configs
        configs.rename(configs.with_name("away"))
        configs.touch()
        deploying.look_for_more()
        assert deploying.on_trial is None
        configs.unlink()
        configs.with_name("away").rename(configs)
        deploying.look_for_more()
        assert deploying.on_trial == Version(OLD, keep_copy(clones.config_file, center.state))


def test_a_fleet_does_not_give_up_code_pulls_while_it_runs(clones: Clones) -> None:
    with fleet_of(clones) as (center, _):
        clones.config_file.write_text(clones.config_file.read_text().partition("[code_pull]")[0])
        assert go_on(center).on_trial is None
        assert [event.kind for event in center.ledger.events()][-1] == "config.refused"


def test_a_release_that_is_tried_again_is_not_refused_for_what_it_was_before(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        new = Version(NEW, current.config)
        release(center, NEW, STAGED)
        deploying = go_on(center)
        deploying.refused = new
        deploying.next_move(replace(healthy(new, current), refused=deploying.refused), LATER)
        assert states(center)[NEW] == (BAD, "the supervisor cannot become it")
        deploying.next_move(healthy(current), LATER)
        release(center, NEW, STAGED)
        deploying.look_for_more()
        assert deploying.on_trial == new
        assert deploying.refused is None


@pytest.mark.parametrize("step", [Step.CANARY, Step.REST, Step.BACK])
def test_a_release_is_not_to_blame_for_a_supervisor_that_was_not_its_own(clones: Clones, step: Step) -> None:
    with fleet_of(clones) as (center, current):
        release(center, NEW, STAGED)
        begun = Deployment(current).begun(Version(NEW, current.config)).at(step)
        center.deployments.write(begun, "rollout.reached")
        deploying = Deploying(center, handed_over=True, handed_back="its supervisor ended")
        assert deploying.deployment == begun
        assert deploying.refused == current


def test_a_release_that_works_with_another_schema_is_neither_rolled_out_nor_gone_back_to(clones: Clones) -> None:
    with fleet_of(clones) as (center, current):
        release(center, NEW, GOOD, SCHEMA + 1)
        release(center, NEWER, STAGED, SCHEMA + 1)
        assert go_on(center).on_trial is None
        with pytest.raises(OperationsCenterError, match=f"works with schema {SCHEMA + 1} of the ledger, which has"):
            roll_back(center, NEW)
        assert roll_back(center, None).current == Version(None, current.config)


def test_a_fleet_that_was_stopped_for_a_new_schema_starts_with_the_installed_code(clones: Clones) -> None:
    with clones.center() as center:
        release(center, OLD, GOOD, SCHEMA - 1)
        config = keep_copy(clones.config_file, center.state)
        center.deployments.write(Deployment(Version(OLD, config)), "rollout.completed")
        deploying = Deploying(replace(center, version=Version(None, config)), handed_over=False, handed_back=None)
        assert deploying.deployment.current == Version(None, config)


def test_copies_of_the_configuration_go_when_nobody_needs_them_any_more(clones: Clones) -> None:
    with clones.center() as center:
        current, old, young = (name_of(word) for word in (b"current", b"old", b"young"))
        for name in (current, old, young):
            copy = center.state.config_copy(name)
            copy.touch()
            age = 0 if name == young else UNUSED_FOR_S + 60
            os.utime(copy, (copy.stat().st_mtime - age,) * 2)
        prune_config_copies(center.state, {current})
        assert {path.name for path in center.state.configs.iterdir()} == {current, young}


def test_a_machine_that_has_no_process_to_give_says_nothing_of_a_release(clones: Clones) -> None:
    runtime = Runtime.of_start(clones.root)
    assert why_not_start(runtime, clones.config_file, None) is None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor, limits[1]))
        with pytest.raises(Unavailable):
            why_not_start(runtime, clones.config_file, None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
