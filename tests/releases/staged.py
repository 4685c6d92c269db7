"""Releases made by hand, as a pull would leave them: a copy of this very program, with an edit."""

import shutil
from pathlib import Path

import operations_center
from operations_center.locks import lock_within
from operations_center.releases.records import ReleaseState
from operations_center.state_directory import SUPERVISOR
from operations_center.wakeups import wake
from tests.fleet import PATIENCE_S, Fleet

PACKAGE = Path(operations_center.__file__).parent

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 2

[roles.test]
backend = "agent"
concurrency = 2

[backends.agent]
kind = "command"
argv = ["python3", "witness.py", "go"]
max_concurrent = 4
working_directory = "."

[code_pull]
every = "1h"
canary = "1s"
"""
"""Nothing is pulled during a test: the repository is none."""


def commit_of(number: int) -> str:
    return f"{number:040x}"


Edit = tuple[str, tuple[str, str]]
"""A file of the package, what is replaced in it, and by what."""


def stage(fleet: Fleet, number: int, *edits: Edit) -> str:
    """The release's commit."""
    commit = commit_of(number)
    directory = fleet.state.release(commit)
    # A pull of the fleet's own would remove what has no row yet.
    with lock_within(fleet.state.pull_lock, PATIENCE_S) as alone:
        assert alone
        shutil.copytree(PACKAGE, directory / "operations_center", ignore=shutil.ignore_patterns("__pycache__"))
        for name, (old, new) in edits:
            file = directory / "operations_center" / name
            text = file.read_text()
            assert old in text, (name, old)
            file.write_text(text.replace(old, new, 1))
        with fleet.center() as center:
            center.releases.record(commit, ReleaseState.STAGED)
    wake(fleet.state.wake, SUPERVISOR)
    return commit
