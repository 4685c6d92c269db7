"""A person goes back to a release that was proven."""

from msgspec.structs import replace

from operations_center.errors import NotFound, OperationsCenterError
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import Release, ReleaseRecords, ReleaseState
from operations_center.state_directory import SUPERVISOR
from operations_center.store import SCHEMA
from operations_center.wakeups import wake
from operations_center.wiring import Center

REASON = "rolled back by a person"


def roll_back(center: Center, commit: str | None) -> Deployment:
    """Mark what is rolled out, or else what is current, as bad; what the fleet goes back to is current from then on.

    ``commit`` may be shortened; None: the last good one before, or else the code that ``up`` was started with. A
    supervisor is woken, the next ``up`` finds it else. Raises OperationsCenterError, NotFound.
    """
    with center.ledger.transaction():
        deployment = center.deployments.read()
        if deployment is None:
            raise OperationsCenterError(
                "cannot roll back: no release was ever rolled out; start a fleet with [code_pull] in its configuration"
            )
        if deployment.step is Step.BACK:
            raise OperationsCenterError("cannot roll back: the fleet is on its way back already; see `status`")
        left = deployment.target or deployment.current
        wanted = _wanted(center, deployment, left, commit)
        if left.commit is not None and left.commit != wanted.commit:
            center.releases.record(left.commit, ReleaseState.BAD, REASON)
        refused_config = left.config if left.config != wanted.config else deployment.refused_config
        back = replace(deployment, current=wanted, target=left).taken_back(REASON, refused_config)
        center.deployments.write(back, "rollout.taken_back")
    wake(center.state.wake, SUPERVISOR)
    return back


def _wanted(center: Center, deployment: Deployment, left: Version, commit: str | None) -> Version:
    current = deployment.current
    if commit is None and deployment.target is not None:
        return current
    found = _named(center.releases, commit) if commit is not None else _good_before(center.releases, left)
    if found is None and left.commit is None:
        raise OperationsCenterError("cannot roll back: no release was proven before this one; see `releases`")
    wanted = found.commit if found is not None else None
    if found is not None and not found.fits(SCHEMA):
        raise OperationsCenterError(
            f"cannot roll back to {wanted}: its code works with schema {found.ledger_schema} of the ledger, "
            f"which has {SCHEMA}; name another"
        )
    if wanted is not None and not center.state.release(wanted).is_dir():
        raise OperationsCenterError(
            f"cannot roll back to {wanted}: its directory was removed (code_pull.keep says how many stay); name another"
        )
    return Version(wanted, current.config)


def _named(releases: ReleaseRecords, commit: str) -> Release:
    found = [each for each in releases.all() if each.commit.startswith(commit)]
    if len(found) != 1:
        problem = "more than one release begins so" if found else "there is no such release"
        raise NotFound(f"cannot roll back to {commit}: {problem}; see `releases`")
    if found[0].state is not ReleaseState.GOOD:
        raise OperationsCenterError(f"cannot roll back to {commit}: it is {found[0].state}, not good; see `releases`")
    return found[0]


def _good_before(releases: ReleaseRecords, left: Version) -> Release | None:
    good = (each for each in releases.all() if each.state is ReleaseState.GOOD and each.fits(SCHEMA))
    return next((each for each in good if each.commit != left.commit), None)
