"""What an executor says of its own run, in ``result.json``: rubbish is an answer here, never an exception."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from operations_center.files import decode_json, read_file
from operations_center.keeper.inspect import is_there
from operations_center.units import parse_duration

RESULT_LIMIT = 1024 * 1024
RETRY_LIMIT_MS = 366 * 86_400_000


class ResultFollowUp(msgspec.Struct, frozen=True):
    """A task that the executor asks for; ``kind`` None leaves the kind to the role."""

    title: Annotated[str, msgspec.Meta(min_length=1)]
    kind: str | None = None
    body: str = ""


class _Document(msgspec.Struct, frozen=True):
    outcome: Literal["succeeded", "failed", "retry", "blocked"] | None = None
    summary: str = ""
    retry_after: str | None = None
    follow_ups: tuple[ResultFollowUp, ...] = ()
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """``outcome`` None: the exit code decides. ``retry_after_ms`` is in milliseconds."""

    outcome: Literal["succeeded", "failed", "retry", "blocked"] | None
    summary: str
    retry_after_ms: int | None
    follow_ups: tuple[ResultFollowUp, ...]
    artifacts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnreadableResult:
    """``reason`` is one line for a person."""

    reason: str


def read_result(run_directory: Path | str) -> Result | UnreadableResult | None:
    """None when the executor wrote no result."""
    path = f"{run_directory}/result.json"
    if not is_there(path):
        return None
    try:
        return _parse(read_file(path, RESULT_LIMIT))
    except FileNotFoundError:
        return None
    except OSError as error:
        return _unreadable(error.strerror or str(error))
    except ValueError as error:
        return _unreadable(str(error))


def _parse(data: bytes) -> Result:
    document = decode_json(data, _Document)
    for text in _texts(document):
        _refuse_unstorable(text)
    return Result(
        outcome=document.outcome,
        summary=document.summary,
        retry_after_ms=None if document.retry_after is None else _duration_ms(document.retry_after),
        follow_ups=document.follow_ups,
        artifacts=document.artifacts,
    )


def _texts(document: _Document) -> Iterator[str]:
    yield document.summary
    yield from document.artifacts
    for follow_up in document.follow_ups:
        yield from (follow_up.title, follow_up.kind or "", follow_up.body)


def _refuse_unstorable(text: str) -> None:
    # No ledger stores either; a lone surrogate raises UnicodeEncodeError, which is a ValueError.
    text.encode()
    if "\0" in text:
        raise ValueError("it holds a NUL character")


def _duration_ms(text: str) -> int:
    try:
        duration = parse_duration(text)
    except ValueError as error:
        raise ValueError(f"retry_after: {error}") from error
    if duration > RETRY_LIMIT_MS:
        raise ValueError(f"retry_after is more than a year: {text}")
    return duration


def _unreadable(why: str) -> UnreadableResult:
    return UnreadableResult(f"cannot read result.json: {' '.join(why.split())[:300]}")
