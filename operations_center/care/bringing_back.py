"""Artifacts on their way from a backup to their run directories.

They are copied below ``runs`` and compared with the manifest before anything is changed, so that a full disk or a
damaged backup is noticed then; later they only get their names. Nothing that is there is overwritten.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from operations_center.care.artifacts import ARTIFACTS, copy_content
from operations_center.care.contents import Content, Unreadable, opened_directory, opened_file, read_content
from operations_center.care.drafts import publish, sync
from operations_center.care.manifest import Artifact, LeftOut
from operations_center.model import HOLDS_SLOT

_STAGE = ".restore"
"""In the directory of the runs, which may be on a file system of its own; no run has this name."""


@dataclass(frozen=True, slots=True)
class BroughtBack:
    """``restored`` and ``present`` are how many: the others were there already, and the same."""

    restored: int = 0
    present: int = 0
    left_out: tuple[LeftOut, ...] = ()


class Returning:
    """``runs`` is where the run directories are."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._stage = runs / _STAGE
        self._drafts: list[tuple[Artifact, Path]] = []
        self._present = 0
        self._left_out: list[LeftOut] = []

    def stage(self, artifacts: Iterable[Artifact], taken: Path, states: Mapping[str, str]) -> list[str]:
        """What differs from the manifest, in words. Raises OSError of what is written.

        ``taken`` is where they lie beside the backup, ``states`` that of each of its runs.
        """
        self._stage.mkdir(mode=0o700)
        found = (self._stage_one(artifact, taken, states.get(artifact.run_id)) for artifact in artifacts)
        return [problem for problem in found if problem is not None]

    def _stage_one(self, artifact: Artifact, taken: Path, state: str | None) -> str | None:
        what = f"its artifact {artifact.run_id}/{artifact.name}"
        if state is None:
            return f"{what} is of a run that it does not know"
        try:
            with _opened(taken, artifact.run_id, artifact.name) as source:
                content = self._take_up(artifact, state, source)
        except FileNotFoundError:
            return f"{what} is missing"
        except Unreadable as error:
            return f"{what} cannot be read: {error}"
        return difference(what, content, Content(artifact.bytes, artifact.sha256))

    def _take_up(self, artifact: Artifact, state: str, source: int) -> Content:
        """Stage it where nothing is in its place."""
        try:
            found = self._found(artifact)
        except Unreadable as error:
            self._leave_out(artifact, f"what is in its place cannot be compared: {error}")
        else:
            if found is None and not self._would_pass_for_lost(artifact.run_id, state):
                draft = self._stage / str(len(self._drafts))
                self._drafts.append((artifact, draft))
                return copy_content(source, draft, int(artifact.mode, 8))
            if found is None:
                self._leave_out(artifact, "its run is open in the backup, and has no directory any more")
            elif found == Content(artifact.bytes, artifact.sha256):
                self._present += 1
            else:
                self._leave_out(artifact, "another file is in its place, which was kept")
        return read_content(source)

    def _found(self, artifact: Artifact) -> Content | None:
        """What is in its place. Raises Unreadable."""
        try:
            with _opened(self._runs, artifact.run_id, ARTIFACTS, artifact.name) as present:
                return read_content(present)
        except FileNotFoundError:
            return None

    def _would_pass_for_lost(self, run_id: str, state: str) -> bool:
        """An open run without a directory is held for a person; with one it would count as lost, and run again."""
        return state in HOLDS_SLOT and not (self._runs / run_id).exists()

    def _leave_out(self, artifact: Artifact, reason: str) -> None:
        self._left_out.append(LeftOut(artifact.run_id, artifact.name, reason))

    def bring_back(self) -> BroughtBack:
        """Raises OSError; what was brought back until then stays, and is found by the next try."""
        restored, directories = 0, {self._runs}
        for artifact, draft in self._drafts:
            run = self._runs / artifact.run_id
            for directory in (run, run / ARTIFACTS):
                directory.mkdir(mode=0o700, exist_ok=True)
                directories.add(directory)
            try:
                publish(draft, run / ARTIFACTS / artifact.name)
                restored += 1
            except FileExistsError:
                self._leave_out(artifact, "another file is in its place, which was kept")
        for directory in directories:
            sync(directory)
        return BroughtBack(restored, self._present, tuple(self._left_out))


@contextmanager
def returning(runs: Path) -> Iterator[Returning]:
    """What is staged is removed at the end, also what a killed restore has left."""
    shutil.rmtree(runs / _STAGE, ignore_errors=True)
    try:
        yield Returning(runs)
    finally:
        shutil.rmtree(runs / _STAGE, ignore_errors=True)


def difference(what: str, found: Content, told: Content) -> str | None:
    if found.size != told.size:
        return f"{what} has {found.size} bytes, not {told.size}"
    if found.sha256 != told.sha256:
        return f"{what} has the sha256 {found.sha256[:12]}…, not {told.sha256[:12]}…"
    return None


@contextmanager
def _opened(directory: Path, *names: str) -> Iterator[int]:
    """A file below a directory; no link on the way. Raises FileNotFoundError, Unreadable."""
    with ExitStack() as opened:
        descriptor = opened.enter_context(opened_directory(directory))
        for name in names[:-1]:
            descriptor = opened.enter_context(opened_directory(name, descriptor))
        yield opened.enter_context(opened_file(names[-1], descriptor))
