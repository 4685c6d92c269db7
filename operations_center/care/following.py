"""Wait until the supervisor has brought the fleet to where it is to be."""

import time
from collections.abc import Callable

from operations_center.errors import OperationsCenterError
from operations_center.fleet import look_at
from operations_center.releases.deployment import Deployment, Step
from operations_center.releases.records import ReleaseState
from operations_center.state_directory import SUPERVISOR
from operations_center.wiring import Center

LOOK_EVERY_S = 0.05
BEGIN_WITHIN_S = 10.0
"""A supervisor that is up takes notice at once."""

BESIDE_CANARIES_S = 60.0

Tell = Callable[[Deployment], object]
"""Is told of each step."""


def _nobody(_: Deployment) -> None:
    """Wants to know."""


def is_supervised(center: Center) -> bool:
    return look_at(center.state, SUPERVISOR).process is not None


def let_rollout_end(center: Center) -> None:
    """Whoever ends a watcher of a release that is being rolled out would give it a bad name.

    Raises OperationsCenterError when it takes too long.
    """
    deployment = center.deployments.read() if center.config.code_pull is not None else None
    if deployment is not None and deployment.step not in (None, Step.BACK) and is_supervised(center):
        wait_for_rest(center)


def wait_for_commit(center: Center, commit: str, tell: Tell) -> Deployment:
    """Until a staged release is current, or was taken back. Raises OperationsCenterError when it takes too long."""
    begun_by, is_late = time.monotonic() + BEGIN_WITHIN_S, False
    while (deployment := wait_for_rest(center, tell)).current.commit != commit and _is_staged(center, commit):
        # Another rollout may have been on its way; now it is this one's turn.
        if is_late:
            raise OperationsCenterError(f"cannot say when {commit} is rolled out: see `operations-center status`")
        time.sleep(LOOK_EVERY_S)
        if deployment != _read(center):
            begun_by = time.monotonic() + BEGIN_WITHIN_S
        is_late = time.monotonic() > begun_by
    return deployment


def _is_staged(center: Center, commit: str) -> bool:
    release = center.releases.find(commit)
    return release is not None and release.state is ReleaseState.STAGED


def wait_for_rest(center: Center, tell: Tell = _nobody) -> Deployment:
    """Until nothing is rolled out or taken back. Raises OperationsCenterError when it takes too long."""
    assert center.config.code_pull is not None
    until = time.monotonic() + 2 * center.config.code_pull.canary_ms / 1000 + BESIDE_CANARIES_S
    told, is_late = None, False
    while (deployment := _read(center)).step is not None:
        if deployment != told:
            tell(deployment)
            told = deployment
        if not is_supervised(center):
            raise OperationsCenterError(
                f"cannot say how the rollout ends: the supervisor has ended at its step {deployment.step}; "
                "the next `operations-center up` goes on with it, or takes it back"
            )
        if is_late:
            raise OperationsCenterError(
                f"cannot say how the rollout ends: it is at step {deployment.step}; see `operations-center status`"
            )
        time.sleep(LOOK_EVERY_S)
        is_late = time.monotonic() > until
    return deployment


def _read(center: Center) -> Deployment:
    deployment = center.deployments.read()
    if deployment is None:
        raise OperationsCenterError("cannot follow a rollout: the fleet was never started with [code_pull]")
    return deployment
