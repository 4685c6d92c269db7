"""``pull``: make a release of the branch's head and see it rolled out; ``pull --check`` only says what it would be."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from operations_center.care.following import is_supervised, wait_for_commit
from operations_center.cli.common import config_option, copy_in_use, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.cli.releases import release_as_json, rollout_in_words
from operations_center.config import load_config
from operations_center.errors import OperationsCenterError
from operations_center.releases.deployment import Deployment
from operations_center.releases.records import ReleaseState
from operations_center.releases.staging import INSTALL_WITHIN_S, Incoming, Staged, Staging
from operations_center.state_directory import SUPERVISOR
from operations_center.wakeups import wake
from operations_center.wiring import Center


@click.command("pull")
@click.option("--check", is_flag=True, help="Fetch, and say what there is; change nothing.")
@click.option("--again", is_flag=True, help="Also if the commit was found to be bad before.")
@config_option
@json_option
def command(check: bool, again: bool, config_file: Path | None, as_json: bool) -> int:
    """Fetch the branch of [code_pull], make a release of its newest commit, and roll it out.

    Without a fleet the next `up` rolls it out. Exit code 1 if the commit is bad, 75 if the remote cannot be reached or
    another pull is at work.
    """
    with opened(config_file) as center, ended_like_ctrl_c():
        if check:
            show_incoming(center, staging_of(center, quiet=True).look(), as_json)
        else:
            staged = stage(center, again=again, quiet=as_json, within_s=INSTALL_WITHIN_S)
            if is_supervised(center):
                _follow(center, staged.release.commit, quiet=as_json)
            show_staged(center, staged, as_json)
    return 0


def _follow(center: Center, commit: str, *, quiet: bool) -> None:
    """Raises OperationsCenterError if the release does not become current."""

    def tell(deployment: Deployment) -> None:
        target = deployment.target.commit if deployment.target else None
        if deployment.step is not None and not quiet:
            say(f"the fleet {rollout_in_words(deployment.current.commit, target, deployment.step)}", err=True)

    current = wait_for_commit(center, commit, tell).current.commit
    if current != commit:
        found = center.releases.find(commit)
        reason = found.reason if found and found.reason else "see `operations-center events`"
        raise OperationsCenterError(
            f"cannot roll {commit} out: {reason}; the fleet runs {current or 'the code that it was started with'}"
        )


def stage(center: Center, *, again: bool, quiet: bool, within_s: float = 0, copy: Path | None = None) -> Staged:
    """Raises OperationsCenterError, see ``Staging.stage``."""
    staging = staging_of(center, quiet=quiet, copy=copy)
    staged = staging.stage(again=again, within_s=within_s)
    wake(center.state.wake, SUPERVISOR)
    if not quiet and staging.repository.has_uncommitted_changes():
        say("note: what is not committed in the clone is in no release", err=True)
    return staged


def staging_of(center: Center, *, quiet: bool, copy: Path | None = None) -> Staging:
    """``copy`` of the configuration; None: the one that the fleet runs. Raises ConfigError, OSError."""

    def tell(words: str) -> None:
        if not quiet:
            say(words, err=True)

    copy = copy or copy_in_use(center)
    return Staging(
        load_config(center.config.file, os.environ, copy),
        copy,
        center.state,
        center.releases,
        center.deployments,
        center.ledger,
        os.environ,
        tell,
    )


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """TERM lets the block clean up behind itself, too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show_staged(center: Center, staged: Staged, as_json: bool) -> None:
    commit = staged.release.commit
    release = center.releases.find(commit) or staged.release
    deployment = center.deployments.read()
    shown = release_as_json(release, deployment.current.commit if deployment else None)
    if as_json:
        print_json({**shown, "new": staged.is_new})
        return
    what = "is a release now" if staged.is_new else "is a release already: nothing is new"
    say(f"{commit} {what}; it is {shown['state']}")


def show_incoming(center: Center, incoming: Incoming, as_json: bool) -> None:
    deployment = center.deployments.read()
    current = deployment.current.commit if deployment else None
    known = release_as_json(incoming.known, current) if incoming.known else None
    if as_json:
        print_json(
            {
                "commit": incoming.commit,
                "new_commits": incoming.new_commits,
                "state": known["state"] if known else None,
                "reason": known["reason"] if known else None,
            }
        )
        return
    count = incoming.new_commits
    news = (
        "" if count is None else "; no new commit" if not count else f"; {count} new commit{'s' if count > 1 else ''}"
    )
    if known is None:
        say(f"{incoming.commit}{news}; it is not staged yet")
    elif known["state"] == ReleaseState.BAD:
        say(f"{incoming.commit}{news}; it is bad, and not tried again: {known['reason']}")
    else:
        say(f"{incoming.commit}{news}; it is {known['state']}")
