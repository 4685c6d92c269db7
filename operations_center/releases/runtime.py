"""How the program of a release is run: which interpreter, and from where it imports ``operations_center``."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

STARTED_WITH = "OPERATIONS_CENTER_STARTED_WITH"
"""Tells an image that was executed for a release which interpreter the fleet was started with, before any release."""

RELEASE_PATH = "OPERATIONS_CENTER_RELEASE_PATH"
"""Tells which entry of PYTHONPATH is a release's, and not the user's own."""


CHANGED = ("PYTHONPATH", RELEASE_PATH, STARTED_WITH)
"""What ``Runtime.environment`` may change."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """``commit`` None: the code that the fleet was started with. ``import_path`` None: what ``python`` has installed.

    A release without code of its own lends its programs only; the code that the fleet was started with goes on.
    """

    commit: str | None
    directory: Path
    python: str
    import_path: Path | None

    @classmethod
    def of_release(cls, commit: str, directory: Path, python: str) -> Self:
        """``python`` is ``code_pull.python``: relative to the release, empty for the fleet's own."""
        return cls(
            commit, directory, str(directory / python) if python else started_with(), _find_import_path(directory)
        )

    @classmethod
    def of_start(cls, directory: Path) -> Self:
        """No release; ``directory`` is the configuration's."""
        return cls(None, directory, started_with(), None)

    @property
    def has_own_code(self) -> bool:
        return self.import_path is not None or self.python != started_with()

    def command(self, *words: str) -> list[str]:
        """The command line of ``operations-center WORDS``; to be run with ``environment``."""
        return self.module("operations_center", *words)

    def module(self, name: str, *words: str) -> list[str]:
        # -P: the directory that we happen to be in must not lend its modules.
        return [self.python, "-P", "-m", name, *words]

    def script(self, text: str, *words: str) -> list[str]:
        return [self.python, "-P", "-c", text, *words]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The variables to run it with. ``inherited`` may be those of a process of another release."""
        environment = dict(inherited) | {STARTED_WITH: started_with()}
        paths = [] if self.import_path is None else [str(self.import_path)]
        known = inherited.get(RELEASE_PATH)
        paths += [path for path in inherited.get("PYTHONPATH", "").split(os.pathsep) if path and path != known]
        for name, value in (("PYTHONPATH", os.pathsep.join(paths)), (RELEASE_PATH, str(self.import_path or ""))):
            environment.pop(name, None)
            if value:
                environment[name] = value
        return environment


def started_with() -> str:
    """The interpreter that the fleet was started with, also in an image that was executed for a release."""
    return os.environ.get(STARTED_WITH) or sys.executable


def _find_import_path(directory: Path) -> Path | None:
    for path in (directory, directory / "src"):
        if (path / "operations_center" / "__init__.py").is_file():
            return path
    return None
