"""Take along what runs have made: copies, never links, for whoever changes the original would change the backup.

An executor may have put anything in its run directory. What is no regular file, or cannot be read, is left out and
named; what cannot be written ends the backup.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from operations_center.care.contents import Content, Unreadable, names_in, opened_directory, opened_file, read_content
from operations_center.care.drafts import sync
from operations_center.care.manifest import Artifact, Artifacts, LeftOut

ARTIFACTS = "artifacts"
"""In a run directory."""


def take_artifacts(runs: Path, run_ids: Iterable[str], into: Path | None) -> Artifacts:
    """Hash the files of these runs, and copy them to ``into/RUN/`` where that is given. Raises OSError of writing."""
    files: list[Artifact] = []
    left_out: list[LeftOut] = []
    for run_id in run_ids:
        # A run that is pruned meanwhile has none any more.
        with _left_out_if_unreadable(run_id, None, left_out), _opened_artifacts(runs, run_id) as directory:
            target = into / run_id if into is not None else None
            files.extend(_take_run(run_id, directory, target, left_out))
    if into is not None:
        sync(into)
    return Artifacts(into is not None, files, left_out)


@contextmanager
def _left_out_if_unreadable(run_id: str, name: str | None, left_out: list[LeftOut]) -> Iterator[None]:
    try:
        yield
    except _Gone:
        pass
    except Unreadable as error:
        left_out.append(LeftOut(run_id, name, str(error)))


class _Gone(Exception):
    """Unlike FileNotFoundError never of what is written."""


@contextmanager
def _opened_artifacts(runs: Path, run_id: str) -> Iterator[int]:
    with ExitStack() as opened:
        try:
            directory = opened.enter_context(opened_directory(runs))
            for name in (run_id, ARTIFACTS):
                directory = opened.enter_context(opened_directory(name, directory))
        except FileNotFoundError:
            raise _Gone from None
        yield directory


def _take_run(run_id: str, directory: int, target: Path | None, left_out: list[LeftOut]) -> list[Artifact]:
    names = names_in(directory)
    if target is not None and names:
        target.mkdir(mode=0o700)
    taken = []
    for name in names:
        with _left_out_if_unreadable(run_id, name, left_out):
            content, mode = _take_file(name, directory, target)
            taken.append(Artifact(run_id, name, content.size, content.sha256, f"{mode:04o}"))
    if target is not None and names:
        sync(target)
    return taken


def _take_file(name: str, directory: int, target: Path | None) -> tuple[Content, int]:
    with ExitStack() as opened:
        try:
            source = opened.enter_context(opened_file(name, directory))
        except FileNotFoundError:
            raise _Gone from None
        mode = stat.S_IMODE(os.fstat(source).st_mode) & 0o777
        return (read_content(source) if target is None else copy_content(source, target / name)), mode


def copy_content(source: int, target: Path, mode: int = 0o600) -> Content:
    """To a new file, synced, with these permissions; none is left when that fails. Raises Unreadable, OSError."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            content = read_content(source, file.write)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return content
