"""From a URL to a file that is whole: to a temporary one beside it, hashed, synced, and then renamed."""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from operations_center.locks import is_locked
from operations_center.providers import Artifact, Missed, Output
from operations_center.providers.coding import Undecodable, decoded

_CHUNK = 1024 * 1024

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MOST_REDIRECTS = 5

GONE = frozenset({400, 401, 403, 404, 410})
"""How storage answers for a signed URL that has expired: each its own way."""

PASSING = frozenset({408, 425, 429})


def refused_status(status: int, retry_after_ms: int | None) -> Missed | None:
    """What a status means for a download; None if the file follows."""
    if status == 200:
        return None
    reason = f"its URL is answered with {status}"
    if status in GONE:
        return Missed(reason, expired=True)
    return Missed(reason, final=status < 500 and status not in PASSING, retry_after_ms=retry_after_ms)


def refused_headers(headers: Mapping[str, str], types: tuple[str, ...], largest: int) -> Missed | None:
    """Whether a file is refused for what its headers say; None if not."""
    size = headers.get("content-length", "")
    if size.isdigit() and int(size) > largest:
        return _too_large(largest)
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if types and not any(_fits(given, wanted.lower()) for wanted in types):
        return Missed(f"its type {given[:60] or 'is not given, which'} is not in output_types", final=True)
    return None


def save(
    chunks: Iterator[bytes], output: Output, directory: Path, largest: int, codings: tuple[str, ...] = ()
) -> Artifact | Missed:
    """Save what arrives without the codings that it has; where that cannot be, as it came, with a note.

    Raises OSError; whatever ``chunks`` raises is passed on. Nothing is left behind but the file itself.
    """
    remove_leftovers(directory)
    with _temporary_file(directory, output.name) as (file, path):
        try:
            written = _write(chunks, file, largest)
        except _TooLarge:
            return _too_large(largest)
        note = None
        if codings:
            try:
                return _save_decoded(path, output, directory, largest, codings)
            except (Undecodable, _TooLarge) as error:
                note = f"as it came, encoded as {', '.join(codings)[:40]}: {error}"
        return _put_in_place(file, path, output, directory, written, note)


@dataclass(frozen=True, slots=True)
class _Written:
    size: int
    sha256: str


class _TooLarge(Exception):
    pass


def _save_decoded(encoded: Path, output: Output, directory: Path, largest: int, codings: tuple[str, ...]) -> Artifact:
    with _temporary_file(directory, output.name) as (file, path), encoded.open("rb") as source:
        chunks = decoded(iter(lambda: source.read(_CHUNK), b""), codings)
        try:
            written = _write(chunks, file, largest)
        except _TooLarge:
            raise _TooLarge(f"it would be larger than {largest} bytes (max_output_size)") from None
        return _put_in_place(file, path, output, directory, written, None)


def _write(chunks: Iterator[bytes], file: BinaryIO, largest: int) -> _Written:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        if size > largest:
            raise _TooLarge
        digest.update(chunk)
        file.write(chunk)
    file.flush()
    return _Written(size, digest.hexdigest())


def _put_in_place(
    file: BinaryIO, path: Path, output: Output, directory: Path, written: _Written, note: str | None
) -> Artifact:
    os.fsync(file.fileno())
    path.replace(directory / output.name)
    _sync_directory(directory)
    return Artifact(output.name, output.kind, written.size, written.sha256, note)


def remove_leftovers(directory: Path) -> None:
    """What killed processes have left, and nobody writes any more. Raises OSError."""
    for path in directory.glob(".*.part"):
        if not is_locked(path):
            path.unlink(missing_ok=True)


def _too_large(largest: int) -> Missed:
    return Missed(f"it is larger than {largest} bytes (max_output_size)", final=True)


def _fits(given: str, wanted: str) -> bool:
    return given == wanted or (wanted.endswith("/*") and given.startswith(wanted[:-1]))


@contextmanager
def _temporary_file(directory: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """A file whose lock says that somebody still writes it; removed at the end, unless it was renamed."""
    path = directory / f".{name}.{secrets.token_hex(4)}.part"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
