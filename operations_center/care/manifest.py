"""What a backup consists of: a file beside it, by which a restore knows that all of it is there and unchanged.

DEST                    the copy of the ledger
DEST.manifest.json      written last: a backup that was killed has none
DEST.artifacts/RUN/     where they were taken along, the files of ``runs/RUN/artifacts``
"""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from operations_center.care.contents import Unreadable, opened_file
from operations_center.ids import RUN_ID
from operations_center.store import load_queries

LONGEST = 1 << 30
"""Bytes of a manifest: room for millions of artifacts, and no more memory than a machine has."""

_SQL = load_queries(Path(__file__).with_name("ledger_file.sql"))

Count = Annotated[int, msgspec.Meta(ge=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
RunId = Annotated[str, msgspec.Meta(pattern=rf"^{RUN_ID.pattern}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}\Z)[^/\x00]+\Z")]
"""One name in one directory: a manifest that was written by somebody else leads nowhere else."""


class LedgerCopy(msgspec.Struct, frozen=True):
    """``schema`` is the ledger's; ``tables`` how many rows each has."""

    bytes: Count
    sha256: Sha256
    schema: Count
    tables: dict[str, Count]


class Artifact(msgspec.Struct, frozen=True):
    """A file in a run's ``artifacts/``. ``mode``: its permissions, in octal."""

    run_id: RunId
    name: FileName
    bytes: Count
    sha256: Sha256
    mode: Annotated[str, msgspec.Meta(pattern=r"^0[0-7]{3}\Z")]


class LeftOut(msgspec.Struct, frozen=True):
    """What a backup does not take along, or a restore does not bring back; ``name`` None: all of that run."""

    run_id: str
    name: str | None
    reason: str


class Artifacts(msgspec.Struct, frozen=True):
    """``taken``: they lie beside the backup; else it is only known what there was."""

    taken: bool
    files: list[Artifact]
    left_out: list[LeftOut]


class Manifest(msgspec.Struct, frozen=True):
    made_at: str
    ledger: LedgerCopy
    artifacts: Artifacts
    schema: Literal[1] = 1


def manifest_of(backup: Path) -> Path:
    return backup.with_name(f"{backup.name}.manifest.json")


def artifacts_of(backup: Path) -> Path:
    return backup.with_name(f"{backup.name}.artifacts")


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Raises OSError."""
    # A file's name may be no UTF-8; only with escapes is it a text.
    path.write_text(json.dumps(msgspec.to_builtins(manifest), indent=1) + "\n")


def read_manifest(path: Path) -> Manifest | None:
    """None where there is none. Raises Unreadable."""
    try:
        with opened_file(path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise Unreadable(f"it is larger than {LONGEST} bytes")
        return msgspec.convert(json.loads(data), Manifest)
    except FileNotFoundError:
        return None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise Unreadable(str(error)) from None


def look_into(database: Path) -> tuple[int, dict[str, int]]:
    """Schema and number of rows of each table of a ledger that nobody writes. Raises sqlite3.Error."""
    with closing(_connect(database)) as connection:
        schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
        names = connection.execute(_SQL["tables"])
        return schema, {name: _count(connection, name) for (name,) in sorted(names)}


def runs_in(database: Path) -> dict[str, str]:
    """The state of each run, oldest first. Raises sqlite3.Error."""
    with closing(_connect(database)) as connection:
        return dict(connection.execute(_SQL["state_of_each_run"]).fetchall())


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _count(connection: sqlite3.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    return int(connection.execute(_SQL["rows"].format(table=f'"{quoted}"')).fetchone()[0])
