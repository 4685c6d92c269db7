"""What a provider's answer means. Pure: an answer in, a value of the interface out.

Nothing in an answer is trusted: it may be any JSON, or none, and be as odd as it likes.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

from operations_center.config import HttpJobSettings
from operations_center.providers import (
    ENDED,
    LONGEST_REASON,
    Heard,
    Ill,
    Job,
    JobState,
    Kind,
    NotSubmitted,
    Output,
    Trouble,
)
from operations_center.providers.addresses import found_at
from operations_center.providers.secret import Secret
from operations_center.text import on_one_line

LONGEST_WORD = 60

LONGEST_TEXT = 10_000
"""Of what may become a reason: more is not even looked at."""

DEEPEST = 20
"""Levels of lists and tables that are looked into."""

MISSING = frozenset({404, 410})
UNAUTHORIZED = frozenset({401, 403})
THROTTLED = 429
UNSURE = frozenset({408, 409, 425})
"""Refusals that may have followed upon an acceptance: a time-out; a duplicate of what was accepted; too early."""

OF_THE_ACCOUNT = frozenset({401, 402, 403})
"""Refusals that say nothing of the request itself: the same one is taken once the account is in order."""

# Not "." nor "..": no escape keeps these from leading to another page.
_JOB_ID = re.compile(r"(?!\.{1,2}\Z)[\x21-\x7e]{1,200}")
_EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,8})\Z")
_TELLING = ("message", "detail", "error", "msg", "title", "reason", "description", "code")


@dataclass(frozen=True, slots=True)
class Said:
    """An answer that was read whole: ``value`` is its JSON, None if it is none. ``url`` is where it came from."""

    status: int
    url: str
    value: Any
    retry_after_ms: int | None = None

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300


def is_job_id(text: str) -> bool:
    """Whether it may stand in a URL as the id of a job: no more than that, and never another page."""
    return _JOB_ID.fullmatch(text) is not None


class Answers:
    """How one backend's provider speaks. ``secret`` is in nothing that is made of an answer."""

    def __init__(self, settings: HttpJobSettings, secret: Secret) -> None:
        self._settings = settings
        self._secret = secret
        self._states = {word: JobState(state) for word, state in settings.status.items()}

    def refusal(self, said: Said) -> NotSubmitted | None:
        """What a submission's answer makes certain; None if it leaves the submission in doubt."""
        if not 400 <= said.status < 500 or said.status in UNSURE:
            return None
        throttled = said.status == THROTTLED
        return NotSubmitted(
            reason=self.reason(said),
            final=not throttled and said.status not in OF_THE_ACCOUNT,
            throttled=throttled,
            retry_after_ms=said.retry_after_ms,
        )

    def job(self, said: Said, own_id: str | None, is_api: Callable[[str], bool]) -> Job | None:
        """The job of an accepted submission; None where the answer has no id. URLs on other hosts are left out."""
        found = _search(self._settings.job_id, said.value) if self._settings.job_id is not None else own_id
        job_id = str(found) if isinstance(found, str | int) and not isinstance(found, bool) else own_id
        if job_id is None or not is_job_id(job_id) or self._secret.is_in(job_id):
            return None
        urls = {}
        for name in ("status", "result", "cancel"):
            text = _search(getattr(self._settings.urls, name), said.value)
            # One that repeats the secret is not kept: the ledger and each backup would have it.
            if isinstance(text, str) and is_api(url := found_at(said.url, text)) and not self._secret.is_in(url):
                urls[name] = url
        return Job(job_id, urls)

    def heard(self, said: Said) -> Heard | Trouble:
        """What the answer to a poll says of the job, but for what one that has succeeded has made."""
        if not said.is_good:
            return self.trouble(said)
        word = _word(_search(self._settings.poll.status, said.value))
        if word is None:
            return Trouble(Ill.UNREADABLE, "the answer holds no status of the job", said.retry_after_ms)
        state = self._states.get(word, JobState.RUNNING)
        if state is JobState.SUCCEEDED and self._is_failure(said):
            state = JobState.FAILED
        is_lost = state in ENDED - {JobState.SUCCEEDED}
        return Heard(
            state=state,
            word=self._line(word, LONGEST_WORD),
            known=word in self._states,
            progress=self._progress(said.value),
            reason=self._error(said) if is_lost else None,
            outputs=self._made(said)[: self._settings.most_outputs] if is_lost else (),
            retry_after_ms=said.retry_after_ms,
        )

    def finished(self, heard: Heard, said: Said) -> Heard | Trouble:
        """A job that has succeeded, with what it has made as the answer tells it, or with why it has not."""
        if not said.is_good:
            trouble = self.trouble(said)
            # The provider answers as the job did: what was wrong with it will not get better.
            refused = trouble.ill is Ill.UNREADABLE and said.status >= 400
            return _failed(heard, self.reason(said)) if refused else trouble
        if said.value is None:
            return Trouble(Ill.UNREADABLE, "the answer with what the job has made is not JSON", said.retry_after_ms)
        if self._is_failure(said):
            return _failed(heard, self._error(said))
        outputs = self._made(said)
        if len(outputs) > self._settings.most_outputs:
            return _failed(heard, f"it has made more than {self._settings.most_outputs} files (most_outputs)")
        reason = "the answer names no output" if self._settings.outputs is not None and not outputs else None
        return Heard(
            state=heard.state, word=heard.word, known=heard.known, progress=1.0, reason=reason, outputs=outputs
        )

    def trouble(self, said: Said) -> Trouble:
        """Why an answer that is not good says nothing of the job."""
        if said.status in MISSING:
            ill = Ill.NOT_FOUND
        elif said.status in UNAUTHORIZED:
            ill = Ill.UNAUTHORIZED
        elif said.status == THROTTLED:
            ill = Ill.THROTTLED
        elif said.status >= 500 or said.status in UNSURE:
            ill = Ill.FAILING
        else:
            ill = Ill.UNREADABLE
        return Trouble(ill, self.reason(said), said.retry_after_ms)

    def reason(self, said: Said) -> str:
        """An answer's status and what the provider says of it, on one line."""
        try:
            phrase = f"{said.status} {HTTPStatus(said.status).phrase}"
        except ValueError:
            phrase = str(said.status)
        told = self._error(said) or _told(said.value)
        return self.line(f"{phrase}: {told}" if told else phrase)

    def line(self, text: str) -> str:
        """A text that may become a reason: on one line, without the secret, cut."""
        return self._line(text, LONGEST_REASON)

    def _line(self, text: str, longest: int) -> str:
        line = on_one_line(" ".join(self._secret.hide(text)[:LONGEST_TEXT].split()))
        return line if len(line) <= longest else f"{line[: longest - 1]}…"

    def _error(self, said: Said) -> str | None:
        told = _told(_search(self._settings.error, said.value))
        return self.line(told) if told else None

    def _is_failure(self, said: Said) -> bool:
        return _is_true(_search(self._settings.failure, said.value))

    def _progress(self, value: Any) -> float | None:
        found = _search(self._settings.progress, value)
        if not isinstance(found, int | float) or isinstance(found, bool):
            return None
        try:
            part = found / self._settings.progress_scale
        except OverflowError:
            return None
        return min(max(part, 0.0), 1.0) if math.isfinite(part) else None

    def _made(self, said: Said) -> tuple[Output, ...]:
        """One more than there may be at most: what is beyond is not even looked at."""
        made = chain(self._outputs(said, Kind.OUTPUT), self._outputs(said, Kind.THUMBNAIL))
        return tuple(islice(made, self._settings.most_outputs + 1))

    def _outputs(self, said: Said, kind: Kind) -> Iterator[Output]:
        expression = self._settings.outputs if kind is Kind.OUTPUT else self._settings.thumbnails
        seen: set[str] = set()
        for text in _texts(_search(expression, said.value)):
            if text not in seen:
                seen.add(text)
                url = found_at(said.url, text)
                extension = _extension(url)
                yield Output(url, f"{kind}-{len(seen)}{'' if self._secret.is_in(extension) else extension}", kind)


def _failed(heard: Heard, reason: str | None) -> Heard:
    return Heard(state=JobState.FAILED, word=heard.word, known=heard.known, reason=reason)


@cache
def _compiled(expression: str) -> Any:
    import jmespath  # noqa: PLC0415 - only who speaks with a provider pays for it

    return jmespath.compile(expression)


def _search(expression: str | None, value: Any) -> Any:
    """None also where the expression does not fit what was answered."""
    if expression is None or value is None:
        return None
    from jmespath.exceptions import JMESPathError  # noqa: PLC0415

    try:
        return _compiled(expression).search(value)
    except (JMESPathError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _is_true(found: Any) -> bool:
    """As JMESPath has it: all but null, false and what is empty."""
    return found is not None and found is not False and found not in ("", [], {})


def _word(found: Any) -> str | None:
    match found:
        case bool():
            return str(found).lower()
        case str() | int():
            return str(found) or None
        case _:
            return None


def _texts(found: Any, left: int = DEEPEST) -> Iterator[str]:
    match found:
        case str():
            yield found
        case list() if left:
            for each in found:
                yield from _texts(each, left - 1)


def _told(found: Any, left: int = DEEPEST) -> str | None:
    """What is meant for people in an error, however it is wrapped up; nothing that may be the request itself."""
    match found:
        case str():
            return found.strip() or None
        case list() if left:
            return next((told for each in found if (told := _told(each, left - 1))), None)
        case Mapping() if left:
            return next((told for key in _TELLING if (told := _told(found.get(key), left - 1))), None)
        case _:
            return None


def _extension(url: str) -> str:
    """Of the last part of a URL's path, if it looks like one."""
    try:
        found = _EXTENSION.search(urlsplit(url).path)
    except ValueError:
        return ""
    return f".{found[1].lower()}" if found else ""


def read_json(body: bytes) -> Any:
    """None for what is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
