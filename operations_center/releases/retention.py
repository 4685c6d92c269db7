"""Which releases may go.

The row goes first and the directory last: a kill in between leaves a directory without a row, which is a leftover.
"""

import logging
import re
from collections.abc import Collection
from pathlib import Path

from operations_center.files import remove_tree
from operations_center.identity import is_alive
from operations_center.ledger import Ledger
from operations_center.pulse import Pulse, read_pulse
from operations_center.releases.config_copies import prune_config_copies
from operations_center.releases.deployment import Deployments
from operations_center.releases.records import Release, ReleaseRecords, ReleaseState
from operations_center.releases.steps import end_marked
from operations_center.state_directory import StateDirectory

_log = logging.getLogger(__name__)

INDEX = ".index"
"""The name of git's index in the directory of releases, while one is made."""

_OURS = re.compile(rf"[0-9a-f]{{40,64}}|{re.escape(INDEX)}.*")


def releases_in_use(state: StateDirectory, ledger: Ledger, deployments: Deployments) -> set[str]:
    """Commits that are rolled out or to be gone back to, that an open run was admitted with, or that a process of the
    fleet runs. Raises LedgerUnusable."""
    deployment = deployments.read()
    deployed = {version.commit for version in deployment.versions} if deployment else set()
    run = {pulse.release for pulse in _living(state)}
    admitted = {run.release for run in ledger.open_runs()}
    return {commit for commit in deployed | admitted | run if commit is not None}


def _living(state: StateDirectory) -> list[Pulse]:
    pulses = [pulse for path in state.root.glob("pulse/*.json") if (pulse := read_pulse(path)) is not None]
    return [pulse for pulse in pulses if is_alive(pulse.process)]


def may_go(releases: Collection[Release], in_use: Collection[str], keep: int) -> list[str]:
    """Commits of releases that nobody needs; ``releases`` are all, the one that changed last first. Pure.

    Kept are those in use, the ``keep`` newest good ones, and the newest of those that are yet to be rolled out.
    """
    good = [release.commit for release in releases if release.state is ReleaseState.GOOD]
    staged = [release.commit for release in releases if release.state is ReleaseState.STAGED]
    kept = {*in_use, *good[:keep], *staged[:1]}
    return [commit for commit in good + staged if commit not in kept]


def prune_releases(
    state: StateDirectory, records: ReleaseRecords, ledger: Ledger, deployments: Deployments, keep: int
) -> list[str]:
    """Remove what may go; the commits. To be called with the pull lock held. Raises LedgerBusy, OSError."""
    # Together: nobody begins to roll out, or goes back to, what is about to go.
    with ledger.transaction():
        in_use = releases_in_use(state, ledger, deployments)
        gone = may_go(records.all(), in_use, keep)
        for commit in gone:
            records.forget(commit)
    remove_leftovers(state, records, in_use)
    prune_config_copies(state, config_copies_in_use(state, deployments))
    return gone


def config_copies_in_use(state: StateDirectory, deployments: Deployments) -> set[str]:
    """Copies of the configuration that are current, rolled out or taken back, or that a process of the fleet runs."""
    deployment = deployments.read()
    deployed = {version.config for version in deployment.versions} if deployment else set()
    return deployed | {pulse.config for pulse in _living(state)}


def remove_leftovers(state: StateDirectory, records: ReleaseRecords, in_use: Collection[str]) -> None:
    """What a killed stage has left, and the directories of bad releases that nobody uses any more.

    To be called with the pull lock held. Raises OSError where the directory of releases cannot be read.
    """
    end_marked(state.root.resolve())
    remove_if_possible(state.rehearsal)
    whole = {release.commit for release in records.all() if release.state is not ReleaseState.BAD}
    for path in state.releases.iterdir():
        if path.name in whole or path.name in in_use or not _OURS.fullmatch(path.name):
            continue
        remove_if_possible(path)


def remove_if_possible(path: Path) -> None:
    """What a commit has left must not keep the next one from being made: what cannot be removed stays, and is told."""
    try:
        remove_tree(path)
    except OSError as error:
        _log.warning("cannot remove %s: %s; remove it by hand", path, error.strerror or error)
