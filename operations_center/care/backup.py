"""A copy of the ledger while the fleet runs, its manifest, and what the runs have made if that is wanted.

    copy the ledger → hash and count the copy → hash the artifacts, or take them along → publish, the manifest last

Everything is written under another name first. A backup that fails leaves nothing; one that is killed has no manifest.
"""

import shutil
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from operations_center.care.artifacts import take_artifacts
from operations_center.care.contents import Unreadable, content_of
from operations_center.care.drafts import draft_beside, draft_directory_beside, publish, refuse_existing, sync
from operations_center.care.manifest import (
    LedgerCopy,
    Manifest,
    artifacts_of,
    look_into,
    manifest_of,
    read_manifest,
    runs_in,
    write_manifest,
)
from operations_center.clock import rfc3339
from operations_center.errors import OperationsCenterError
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.text import on_one_line


@dataclass(frozen=True, slots=True)
class Backup:
    path: Path
    manifest: Manifest


def back_up(
    ledger: SqliteLedger, runs: Path, destination: Path, now_wall: int, *, with_artifacts: bool = False
) -> Backup:
    """One state of the ledger, 0600, whole or not there. Raises OperationsCenterError; overwrites nothing.

    In a directory the copy's name has the time in it. ``runs`` is where the run directories are.
    """
    path = destination
    try:
        if destination.is_dir():
            path = destination / f"ledger-{file_time(now_wall)}.db"
        _refuse_taken_names(path, with_artifacts)
        with ExitStack() as drafts:
            copy = drafts.enter_context(draft_beside(path))
            taken = drafts.enter_context(draft_directory_beside(artifacts_of(path))) if with_artifacts else None
            draft = drafts.enter_context(draft_beside(manifest_of(path)))
            manifest = Manifest(
                made_at=rfc3339(now_wall) or "",
                ledger=_copy_ledger(ledger, copy),
                artifacts=take_artifacts(runs, runs_in(copy), taken),
            )
            write_manifest(manifest, draft)
            sync(draft)
            _publish(copy, taken, draft, path)
    except (OSError, ValueError, sqlite3.Error, Unreadable) as error:
        problem = getattr(error, "strerror", None) or error
        raise OperationsCenterError(on_one_line(f"cannot write the backup {path}: {problem}; name another")) from None
    return Backup(path, manifest)


def file_time(wall_ms: int) -> str:
    """``20260131T120000123Z``: a time for a file's name."""
    return (rfc3339(wall_ms) or "").translate({ord(c): None for c in "-:."})


def _refuse_taken_names(path: Path, with_artifacts: bool) -> None:
    refuse_existing(path)
    if not _is_left_manifest(path):
        refuse_existing(manifest_of(path))
    if with_artifacts:
        refuse_existing(artifacts_of(path))


def _is_left_manifest(path: Path) -> bool:
    """Of a backup that was moved away or removed: without it, it says nothing."""
    try:
        return read_manifest(manifest_of(path)) is not None
    except Unreadable:
        return False


def _copy_ledger(ledger: SqliteLedger, copy: Path) -> LedgerCopy:
    """Hashed and counted is the copy, and so the very state that it has."""
    ledger.backup(copy)
    sync(copy)
    content, (schema, tables) = content_of(copy), look_into(copy)
    return LedgerCopy(content.size, content.sha256, schema, tables)


def _publish(copy: Path, taken: Path | None, manifest: Path, path: Path) -> None:
    """All of it, or what was published already is taken back."""
    with ExitStack() as undo:
        if taken is not None:
            taken.rename(artifacts_of(path))
            undo.callback(shutil.rmtree, artifacts_of(path), ignore_errors=True)
        publish(copy, path)
        undo.callback(path.unlink, missing_ok=True)
        # Not before the name is ours: another backup may have been quicker, and the manifest be its own.
        if _is_left_manifest(path):
            manifest_of(path).unlink()
        sync(path.parent)
        publish(manifest, manifest_of(path))
        undo.callback(manifest_of(path).unlink, missing_ok=True)
        sync(path.parent)
        undo.pop_all()
