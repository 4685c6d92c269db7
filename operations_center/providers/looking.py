"""Look after a job: ask for it, cancel it if it is to end, fetch what it has made. HTTP and files only, no ledger.

All of it may be repeated: whoever comes after a death asks again, and keeps the files that are there already. A file
has its name only when it is whole.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from operations_center.providers import (
    ENDED,
    Artifact,
    Heard,
    Ill,
    Job,
    JobState,
    Missed,
    Output,
    Provider,
    Trouble,
)

_CHUNK = 1024 * 1024


class Going(msgspec.Struct, frozen=True):
    """The job is queued or running."""

    heard: Heard


class Over(msgspec.Struct, frozen=True):
    """The job has ended and what it has made is there; ``refused`` says why something of it never will be."""

    heard: Heard
    artifacts: tuple[Artifact, ...] = ()
    refused: str | None = None


class Unsure(msgspec.Struct, frozen=True):
    """Nothing was learned, or not everything is there yet. ``ill`` is None when the provider itself is well.

    ``may_pass``: what was in the way may be gone the next time.
    """

    reason: str
    ill: Ill | None = None
    retry_after_ms: int | None = None
    may_pass: bool = True


Finding = Going | Over | Unsure


def look_after(provider: Provider, job: Job, artifacts: Path, *, end: bool = False) -> Finding:
    """``end``: cancel it if it certainly has not ended, and ask again. What it has made goes into ``artifacts``."""
    finding = _look_after(provider, job, artifacts, end)
    if isinstance(finding, Over):
        _remove_leftovers(artifacts)
    return finding


def _look_after(provider: Provider, job: Job, artifacts: Path, end: bool) -> Finding:
    heard = provider.ask(job)
    if end and isinstance(heard, Heard) and heard.state not in ENDED:
        if not heard.known:
            reason = f"its provider says {heard.word}, which is not in status: it may have ended, and is not cancelled"
            return Unsure(reason, may_pass=False)
        if not provider.can_cancel:
            return Unsure("its backend names no way to cancel a job: it goes on", may_pass=False)
        trouble = provider.cancel(job)
        if trouble is not None:
            return _unsure(trouble, "cannot cancel the job: ")
        ran, heard = heard, provider.ask(job)
        if isinstance(heard, Trouble) and heard.ill is Ill.NOT_FOUND:
            # There was a job a moment ago: some providers cancel by deleting.
            return Over(Heard(JobState.CANCELLED, ran.word))
    if isinstance(heard, Trouble):
        return _unsure(heard)
    if heard.state is JobState.SUCCEEDED:
        return _fetch(provider, job, heard, artifacts)
    return Over(heard, _fetch_part(provider, heard, artifacts)) if heard.state in ENDED else Going(heard)


def _unsure(trouble: Trouble, what: str = "") -> Unsure:
    may_pass = trouble.ill is not Ill.NOT_FOUND
    return Unsure(f"{what}{trouble.reason}", trouble.ill, trouble.retry_after_ms, may_pass)


def _fetch(provider: Provider, job: Job, heard: Heard, directory: Path) -> Finding:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        got = _fetch_all(provider, heard.outputs, directory)
        if isinstance(got, Missed) and got.expired:
            fresh = provider.ask(job)
            if isinstance(fresh, Trouble):
                return _unsure(fresh)
            # Fewer than before: something is still missing, and the next look hears what the provider makes of it.
            if len(fresh.outputs) >= len(heard.outputs):
                got = _fetch_all(provider, fresh.outputs, directory)
    except OSError as error:
        return Unsure(f"cannot write what the job has made: {error.strerror or error}")
    if not isinstance(got, Missed):
        return Over(heard, tuple(got))
    return Over(heard, refused=got.reason) if got.final else Unsure(got.reason, retry_after_ms=got.retry_after_ms)


def _fetch_part(provider: Provider, heard: Heard, directory: Path) -> tuple[Artifact, ...]:
    """Of a job that has not succeeded: some leave a part of the results behind. Nothing waits for it."""
    if not heard.outputs:
        return ()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        got = _fetch_all(provider, heard.outputs, directory)
    except OSError:
        return ()
    return () if isinstance(got, Missed) else tuple(got)


def _fetch_all(provider: Provider, outputs: Sequence[Output], directory: Path) -> list[Artifact] | Missed:
    fetched = []
    for output in outputs:
        artifact = _there_already(output, directory) or provider.download(output, directory)
        if isinstance(artifact, Missed):
            return artifact
        fetched.append(artifact)
    return fetched


def _remove_leftovers(directory: Path) -> None:
    """What killed processes have left half-written."""
    from operations_center.providers.downloads import remove_leftovers  # noqa: PLC0415 - as below

    with suppress(OSError):
        remove_leftovers(directory)


def _there_already(output: Output, directory: Path) -> Artifact | None:
    try:
        descriptor = os.open(directory / output.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    import hashlib  # noqa: PLC0415 - it brings a library of some MiB along, and watchers of programs need none of it

    digest, size = hashlib.sha256(), 0
    with os.fdopen(descriptor, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Artifact(output.name, output.kind, size, digest.hexdigest())
