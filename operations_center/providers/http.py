"""A provider that is spoken to over HTTP, as its backend's settings say.

    submit    POST   → a job, or why there is none, or doubt
    ask       GET    → the job's state; once it has succeeded, a further GET for what it has made where that is apart
    cancel    POST, PUT or DELETE
    download  GET, by the rules of addresses.py and downloads.py

What is sent stands in templates, what is found in expressions; what an answer means is decided in ``answers.py``.
"""

import json
import time
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from msgspec.structs import replace

from operations_center.config import HttpJobSettings
from operations_center.config.placeholders import fill, placeholders_in
from operations_center.providers import (
    Artifact,
    Heard,
    Ill,
    InDoubt,
    Job,
    JobState,
    Missed,
    NotSubmitted,
    Order,
    Output,
    Submission,
    Trouble,
)
from operations_center.providers.addresses import Reach, is_weaker, names_one_page, redirected
from operations_center.providers.answers import Answers, Said, read_json
from operations_center.providers.coding import codings_of
from operations_center.providers.downloads import MOST_REDIRECTS, REDIRECTS, refused_headers, refused_status, save
from operations_center.providers.schedule import pause_ms, retry_after_ms
from operations_center.providers.secret import Secret

if TYPE_CHECKING:
    from operations_center.providers.wire import Answer, Wire

LARGEST_ANSWER = 4 << 20


class HttpProvider:
    """Nothing is connected to, and httpx not imported, before the first request."""

    def __init__(self, settings: HttpJobSettings, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._secret = Secret.of(settings, environment)
        self._reach = Reach(settings)
        self._answers = Answers(settings, self._secret)

    def submit(self, order: Order, *, again: bool) -> Submission:
        until = time.monotonic() + self._settings.submit_timeout_ms / 1000
        values = _values_of(order)
        own_id = self._settings.own_id and str(fill(self._settings.own_id, values))
        secret = self._secret.value()
        if secret is None:
            return NotSubmitted(self._secret.obstacle, final=False)
        if again and own_id:
            found = self._look_up(own_id, until)
            if found is not None:
                return found
        if own_id:
            values["job_id"] = own_id
        submission = self._submit(values, secret, own_id, order.run_id, until)
        if again and own_id and isinstance(submission, NotSubmitted) and submission.final:
            # It may be refused because the earlier one has arrived meanwhile.
            return self._look_up(own_id, until) or submission
        return submission

    def ask(self, job: Job) -> Heard | Trouble:
        said = self._get(self._url("status", self._settings.poll.url, job))
        if isinstance(said, Trouble):
            return said
        heard = self._answers.heard(said)
        if isinstance(heard, Trouble) or heard.state is not JobState.SUCCEEDED:
            return heard
        if self._settings.has_result:
            template = self._settings.result.url if self._settings.result is not None else None
            said = self._get(self._url("result", template, job))
            if isinstance(said, Trouble):
                return said
        return self._answers.finished(heard, said)

    @property
    def can_cancel(self) -> bool:
        return self._settings.can_cancel

    def cancel(self, job: Job) -> Trouble | None:
        settings = self._settings.cancel
        url = self._url("cancel", settings.url if settings is not None else None, job)
        said = self._get(url, settings.method if settings is not None else "POST")
        if isinstance(said, Trouble):
            return said
        return None if said.is_good else self._answers.trouble(said)

    def download(self, output: Output, directory: Path) -> Artifact | Missed:
        from operations_center.providers.wire import Forbidden, NoAnswer  # noqa: PLC0415

        try:
            got = self._download(output, directory)
            # What its server says of itself may be anything.
            if isinstance(got, Missed):
                return replace(got, reason=self._answers.line(got.reason))
            return replace(got, note=self._answers.line(got.note)) if got.note else got
        except NoAnswer as error:
            reason = self._answers.line(f"it was not downloaded: {error.reason}")
            return Missed(reason, final=isinstance(error, Forbidden))
        except OSError as error:
            return Missed(self._answers.line(f"it cannot be written to {directory}: {error.strerror or error}"))

    def pause_ms(self, asked: int, retry_after_ms: int | None) -> int:
        poll = self._settings.poll
        return pause_ms(asked, poll.initial_ms, poll.factor, poll.max_ms, retry_after_ms)

    def _look_up(self, own_id: str, until: float) -> Submission | None:
        """The job of an earlier submission; None if there certainly is none, and doubt if that is not known."""
        job = Job(own_id)
        seconds = min(self._settings.poll.timeout_ms / 1000, until - time.monotonic())
        said = self._get(self._url("status", self._settings.poll.url, job), seconds=seconds)
        if isinstance(said, Said):
            if said.is_good:
                return job
            said = self._answers.trouble(said)
        return None if said.ill is Ill.NOT_FOUND else InDoubt(f"whether there is a job already: {said.reason}")

    def _submit(
        self, values: Mapping[str, str], secret: str, own_id: str | None, run_id: str, until: float
    ) -> Submission:
        from operations_center.providers.wire import NoAnswer  # noqa: PLC0415

        settings = self._settings.submit
        url = self._filled_url(settings.url, values)
        if not names_one_page(url):
            return NotSubmitted("the URL that its task is put into is too long, or leads to another page", final=True)
        headers = fill(settings.headers or {}, {**values, "secret": secret})
        if self._settings.idempotency_header is not None:
            headers[self._settings.idempotency_header] = run_id
        content = None
        if settings.json is not None:
            content = json.dumps(fill(settings.json, values), ensure_ascii=False).encode(errors="replace")
            headers.setdefault("Content-Type", "application/json")
        seconds = until - time.monotonic()
        status = None
        try:
            with self._wire.ask(
                settings.method, url, headers=headers, seconds=seconds, content=content, new_connection=True
            ) as answer:
                status = answer.status
                said = _said(answer, url)
        except NoAnswer as error:
            if status is not None:
                said = Said(status, url, None)
            elif error.sent:
                return InDoubt(self._answers.line(f"no answer to the submission: {error.reason}"))
            else:
                return NotSubmitted(self._answers.line(f"cannot reach the provider: {error.reason}"), final=False)
        if said.is_good:
            job = self._answers.job(said, own_id, self._reach.is_api)
            return job or InDoubt(self._answers.line(f"the submission's answer has no job id ({said.status})"))
        refusal = self._answers.refusal(said)
        return refusal or InDoubt(self._answers.reason(said))

    def _get(self, url: str | None, method: str = "GET", seconds: float | None = None) -> Said | Trouble:
        """The API's answer to a request about a job, read whole."""
        from operations_center.providers.wire import NoAnswer, TooLong  # noqa: PLC0415

        if url is None:
            return Trouble(Ill.UNREADABLE, "the provider gave no URL of its own API for the job")
        if self._secret.value() is None:
            return Trouble(Ill.UNAUTHORIZED, self._secret.obstacle)
        within = self._settings.poll.timeout_ms / 1000 if seconds is None else seconds
        try:
            with self._wire.ask(method, url, headers=self._standing_headers(), seconds=within) as answer:
                return _said(answer, url)
        except TooLong as error:
            return Trouble(Ill.UNREADABLE, error.reason)
        except NoAnswer as error:
            return Trouble(Ill.FAILING, self._answers.line(error.reason))

    def _download(self, output: Output, directory: Path) -> Artifact | Missed:
        until = time.monotonic() + self._settings.download_timeout_ms / 1000
        url = output.url
        for _ in range(MOST_REDIRECTS + 1):
            obstacle = self._reach.obstacle(url)
            if obstacle is not None:
                return Missed(obstacle, final=True)
            headers = self._standing_headers() if self._reach.is_api(url) else {}
            with self._wire.ask("GET", url, headers=headers, seconds=until - time.monotonic()) as answer:
                if answer.status not in REDIRECTS:
                    return self._save(answer, output, directory)
                before, url = url, redirected(url, answer.headers.get("location", ""))
                if is_weaker(url, before):
                    return Missed("it is redirected from https to http", final=True)
        return Missed(f"it is redirected more than {MOST_REDIRECTS} times", final=True)

    def _save(self, answer: "Answer", output: Output, directory: Path) -> Artifact | Missed:
        settings = self._settings
        refused = refused_status(answer.status, _retry_after_ms(answer)) or refused_headers(
            answer.headers, settings.output_types, settings.max_output_size_bytes
        )
        codings = codings_of(answer.headers.get("content-encoding", ""))
        return refused or save(answer.chunks, output, directory, settings.max_output_size_bytes, codings)

    def _url(self, name: str, template: str | None, job: Job) -> str | None:
        """The URL that the provider gave for the job, if it is its own API's; else the backend's."""
        given = job.urls.get(name)
        if given is not None and self._reach.is_api(given):
            return given
        return None if template is None else self._filled_url(template, {"job_id": job.job_id})

    def _filled_url(self, template: str, values: Mapping[str, str]) -> str:
        known = {"base_url": (self._settings.base_url or "").rstrip("/"), **values}
        return str(fill(template, known, lambda value: quote(value, safe="", errors="replace")))

    def _standing_headers(self) -> dict[str, str]:
        """The headers of a submission that are the same for all jobs: they go with every request to the API."""
        known = {"secret": self._secret.value() or ""}
        headers = (self._settings.submit.headers or {}).items()
        return {name: fill(value, known) for name, value in headers if placeholders_in(value) <= known.keys()}

    @cached_property
    def _wire(self) -> "Wire":
        from operations_center.providers.wire import Wire  # noqa: PLC0415 - httpx is slow to import

        wire = Wire(self._reach.may_connect)
        weakref.finalize(self, wire.close)
        return wire


def _values_of(order: Order) -> dict[str, str]:
    return {
        "run_id": order.run_id,
        "task_id": order.task_id,
        "title": order.title,
        "body": order.body,
        "prompt": order.prompt,
        "attempt": str(order.attempt),
        "fence": str(order.fence),
    }


def _said(answer: "Answer", url: str) -> Said:
    value: Any = read_json(answer.body(LARGEST_ANSWER))
    return Said(answer.status, url, value, _retry_after_ms(answer))


def _retry_after_ms(answer: "Answer") -> int | None:
    return retry_after_ms(answer.headers, time.time_ns() // 1_000_000)
