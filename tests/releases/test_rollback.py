"""A person goes back, without a fleet: what the next ``up`` will find."""

import pytest

from operations_center.care.rollback import REASON, roll_back
from operations_center.errors import NotFound, OperationsCenterError
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import ReleaseState
from tests.releases.clones import Clones

OLD, NEW = "1" * 40, "2" * 40
OLD_CONFIG, NEW_CONFIG = f"{'1' * 16}.toml", f"{'2' * 16}.toml"


def test_a_configuration_that_is_rolled_back_is_not_tried_again(clones: Clones) -> None:
    with clones.center() as center:
        begun = Deployment(Version(None, OLD_CONFIG)).begun(Version(None, NEW_CONFIG))
        center.deployments.write(begun, "rollout.begun")
        back = roll_back(center, None)
        assert center.deployments.read() == back
    assert (back.current, back.step, back.refused_config) == (Version(None, OLD_CONFIG), Step.BACK, NEW_CONFIG)


def test_a_release_that_is_rolled_back_is_bad_and_the_good_one_before_is_current(clones: Clones) -> None:
    with clones.center() as center:
        for commit in (OLD, NEW):
            center.state.release(commit).mkdir()
            center.releases.record(commit, ReleaseState.GOOD)
        center.deployments.write(Deployment(Version(NEW, OLD_CONFIG)), "rollout.completed")
        assert roll_back(center, OLD[:7]).current == Version(OLD, OLD_CONFIG)
        found = center.releases.find(NEW)
    assert found is not None
    assert (found.state, found.reason) == (ReleaseState.BAD, REASON)


def test_what_cannot_be_gone_back_to_changes_nothing(clones: Clones) -> None:
    with clones.center() as center:
        with pytest.raises(OperationsCenterError, match="no release was ever rolled out"):
            roll_back(center, None)
        center.deployments.write(Deployment(Version(None, OLD_CONFIG)), "deployment.begun")
        with pytest.raises(NotFound, match="no such release"):
            roll_back(center, "abc")
        with pytest.raises(OperationsCenterError, match="no release was proven before"):
            roll_back(center, None)
        assert center.deployments.read() == Deployment(Version(None, OLD_CONFIG))
