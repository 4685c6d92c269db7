"""What is certain after a submission, and what is in doubt."""

import os
import signal
import time
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from msgspec.structs import replace

from operations_center.providers import InDoubt, Job, NotSubmitted
from operations_center.providers.backend import HttpJobBackend
from operations_center.providers.http import HttpProvider
from tests.fleet import wait_until
from tests.points import Stepped
from tests.providers.conftest import ORDER, SECRET, SETTINGS, Client, read_settings
from tests.providers.remote import Remote
from tests.providers.script import Provider

OWN_ID = (
    ('job_id = "id"', 'own_id = "run-{run_id}"'),
    ('{ prompt = "{prompt}" }', '{ prompt = "{prompt}", submission_id = "{job_id}" }'),
)
KEY = ('job_id = "id"', 'job_id = "id"\nidempotency_header = "Idempotency-Key"')


def test_a_submission_sends_what_the_templates_say(remote: Remote, client: Client) -> None:
    assert client().submit(ORDER, again=False) == Job("job-1")
    (submitted,) = remote.jobs()
    assert submitted.body == {"prompt": ORDER.prompt}
    assert submitted.headers["authorization"] == f"Bearer {SECRET}"
    assert submitted.headers["x-run"] == ORDER.run_id
    assert "cookie" not in submitted.headers


def test_the_providers_own_urls_are_kept_and_those_of_others_are_not(remote: Remote, client: Client) -> None:
    provider = client(('job_id = "id"', 'job_id = "id"\nurls = { status = "urls.get", cancel = "urls.cancel" }'))
    here = f"{remote.url}/jobs/job-1"
    assert provider.submit(ORDER, again=False) == Job("job-1", {"status": here, "cancel": f"{here}/cancel"})
    remote.rule("submit", status=201, body={"id": "x", "urls": {"get": f"{remote.other_host}/a", "cancel": "/b"}})
    assert provider.submit(ORDER, again=False) == Job("x", {"cancel": f"{remote.url}/b"})


@pytest.mark.parametrize(
    ("status", "final"), [(400, True), (404, True), (413, True), (422, True), (401, False), (402, False), (403, False)]
)
def test_a_refusal_is_certain(remote: Remote, client: Client, status: int, final: bool) -> None:
    remote.rule("submit", status=status, body={"detail": "no\n way"})
    submission = client().submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert (submission.final, submission.throttled) == (final, False)
    assert submission.reason.endswith(": no way")
    assert submission.reason.startswith(f"{status} ")


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "7"}, 7_000),
        ({"Retry-After": "0.5"}, 500),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 250),
        ({"Retry-After": "99999999999"}, 3_600_000),
        ({"Retry-After": "-1"}, 0),
        ({"Retry-After": "1e308"}, 3_600_000),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Wed, 99 Oct"}, None),
        ({}, None),
    ],
)
def test_a_throttled_submission_says_how_long_to_wait(
    remote: Remote, client: Client, headers: dict[str, str], wait: int | None
) -> None:
    remote.rule("submit", status=429, headers=headers)
    submission = client().submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert (submission.throttled, submission.final, submission.retry_after_ms) == (True, False, wait)


def test_the_wait_may_be_given_as_a_date(remote: Remote, client: Client) -> None:
    remote.rule("submit", status=429, headers={"Retry-After": formatdate(time.time() + 1000, usegmt=True)})
    submission = client().submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert 0 < (submission.retry_after_ms or 0) <= 1_000_000


def test_no_header_of_an_answer_loses_the_jobs_id(remote: Remote, client: Client) -> None:
    remote.rule("submit", headers={"Retry-After": "1e308"})
    assert client().submit(ORDER, again=False) == Job("job-1")


@pytest.mark.parametrize("job_id", [".", "..", "a b", "a\r\nb", "", "x" * 201, True, None, ["x"]])
def test_an_id_that_cannot_stand_in_a_url_is_none(remote: Remote, client: Client, job_id: object) -> None:
    remote.rule("submit", body={"id": job_id})
    assert isinstance(client().submit(ORDER, again=False), InDoubt)


@pytest.mark.parametrize("title", [".", "..", "x" * 9_000])
def test_a_task_cannot_lead_its_submission_to_another_page(remote: Remote, client: Client, title: str) -> None:
    provider = client(('url = "{base_url}/jobs"', 'url = "{base_url}/jobs/{title}/new"'))
    submission = provider.submit(replace(ORDER, title=title), again=False)
    assert isinstance(submission, NotSubmitted)
    assert submission.final
    assert remote.requests() == []


def test_a_title_that_is_no_unicode_may_stand_in_a_url(remote: Remote, client: Client) -> None:
    client(('url = "{base_url}/jobs"', 'url = "{base_url}/jobs/{title}/new"')).submit(
        replace(ORDER, title="a\udcff/b"), again=False
    )
    assert remote.requests()[-1].path == "/jobs/a%3F%2Fb/new"


def test_a_refusal_that_is_nested_without_end_is_certain(remote: Remote, client: Client) -> None:
    remote.rule("submit", status=422, body=f'{{"error": {"[" * 700}{"]" * 700}}}')
    submission = client().submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert submission.final


@pytest.mark.parametrize(
    "effect",
    [
        {"vanish": True},
        {"reset": True},
        {"status": 500, "accept": True},
        {"status": 503, "headers": {"Retry-After": "1"}},
        {"status": 408},
        {"status": 409},
        {"status": 425},
        {"status": 303, "headers": {"Location": "{base}/jobs/job-1"}},
        {"body": "<html>"},
        {"body": {"id": None}},
        {"body": {"id": True}},
        {"body": {"id": "a\nb"}},
        {"body": {"id": ["x"]}},
        {"truncate": 5},
        pytest.param({"body": "[" * 100_000}, id="deep"),
        pytest.param({"body": '{"id": "' + "x" * (5 << 20) + '"}'}, id="huge"),
        {"drip": 0.3},
        {"delay": 30.0},
    ],
    ids=str,
)
def test_what_may_have_arrived_is_in_doubt(remote: Remote, client: Client, effect: dict[str, Any]) -> None:
    slow = "drip" in effect or "delay" in effect
    remote.rule("submit", **effect)
    provider = client(('submit_timeout = "20s"', 'submit_timeout = "1s"')) if slow else client()
    assert isinstance(provider.submit(ORDER, again=False), InDoubt)
    assert len(remote.requests("submit")) == 1


def test_a_provider_that_nobody_listens_for_got_nothing(client: Client) -> None:
    provider = client(("http://127.0.0.1:", "http://127.0.0.1:1#"))
    submission = provider.submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert not submission.final


def test_a_name_that_does_not_resolve_got_nothing(client: Client) -> None:
    submission = client(("http://127.0.0.1:", "http://no-such-host.invalid:")).submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)


def test_without_its_secret_nothing_is_submitted(remote: Remote, client: Client) -> None:
    submission = client(secret=None).submit(ORDER, again=False)
    assert submission == NotSubmitted("VIDEO_API_KEY is not set", final=False)
    assert remote.requests() == []


@pytest.mark.parametrize("shown", [SECRET, "s3cret%2Fkey"])
def test_a_reason_never_shows_the_secret(remote: Remote, client: Client, shown: str) -> None:
    remote.rule("submit", status=400, body={"error": {"message": f"bad key: Bearer {shown}"}})
    submission = client().submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert submission.reason == "400 Bad Request: bad key: Bearer ***"


def test_a_reason_is_short_and_shows_no_payload(remote: Remote, client: Client) -> None:
    told = [{"type": "value_error", "loc": ["body"], "input": ORDER.prompt, "msg": "x" * 1000}]
    remote.rule("submit", status=422, body={"detail": told})
    submission = client().submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert len(submission.reason) == 300
    assert "mat" not in submission.reason


def submitted_twice(provider: HttpProvider) -> tuple[Any, Any]:
    first = provider.submit(ORDER, again=False)
    return first, provider.submit(ORDER, again=True)


def test_a_provider_that_takes_a_key_makes_one_job_of_two_submissions(remote: Remote, client: Client) -> None:
    remote.is_now(Provider(idempotent=True))
    remote.rule("submit", times=1, vanish=True)
    provider = client(KEY)
    first, second = submitted_twice(provider)
    assert isinstance(first, InDoubt)
    assert second == Job("job-1")
    assert [job.key for job in remote.jobs()] == [ORDER.run_id]


def test_a_job_with_an_id_of_ours_is_looked_up_before_it_is_submitted_again(remote: Remote, client: Client) -> None:
    remote.is_now(Provider(own_ids=True))
    remote.rule("submit", times=1, vanish=True)
    provider = client(*OWN_ID)
    first, second = submitted_twice(provider)
    assert isinstance(first, InDoubt)
    assert second == Job(f"run-{ORDER.run_id}")
    assert len(remote.requests("submit")) == 1


def test_a_job_with_an_id_of_ours_that_never_arrived_is_submitted(remote: Remote, client: Client) -> None:
    remote.is_now(Provider(own_ids=True))
    remote.rule("submit", times=1, vanish=True, accept=False)
    _, second = submitted_twice(client(*OWN_ID))
    assert second == Job(f"run-{ORDER.run_id}")
    assert len(remote.jobs()) == 1


@pytest.mark.parametrize("effect", [{"status": 500}, {"status": 401}, {"vanish": True}], ids=str)
def test_a_look_up_that_fails_leaves_doubt_and_submits_nothing(
    remote: Remote, client: Client, effect: dict[str, Any]
) -> None:
    remote.rule("poll", **effect)
    assert isinstance(client(*OWN_ID).submit(ORDER, again=True), InDoubt)
    assert remote.requests("submit") == []


def test_a_refused_duplicate_of_ours_is_the_job(remote: Remote, client: Client) -> None:
    remote.is_now(Provider(own_ids=True))
    provider = client(*OWN_ID)
    provider.submit(ORDER, again=False)
    remote.rule("poll", times=1, status=404)
    remote.rule("submit", status=400, body="Job already exists")
    assert provider.submit(ORDER, again=True) == Job(f"run-{ORDER.run_id}")
    assert isinstance(provider.submit(replace(ORDER, run_id="r2-b"), again=True), NotSubmitted)


@pytest.mark.parametrize(("changes", "may"), [((), False), ((KEY,), True), (OWN_ID, True)])
def test_only_what_takes_a_key_or_an_id_of_ours_may_be_sent_twice(
    tmp_path: Path, changes: Sequence[tuple[str, str]], may: bool
) -> None:
    text = SETTINGS.format(url="http://127.0.0.1:1")
    for old, new in changes:
        text = text.replace(old, new)
    assert HttpJobBackend(read_settings(tmp_path / "operations_center.toml", text), {}).may_submit_again is may


def begins_to_read(frame: FrameType, event: str, _argument: object) -> str | None:
    return "reads" if event == "call" and frame.f_code.co_qualname == "_Stream.read" else None


def test_an_answer_that_has_come_is_read_by_who_stood_still_until_its_time_was_over(
    remote: Remote, client: Client
) -> None:
    provider = client(('submit_timeout = "20s"', 'submit_timeout = "1s"'))

    def submit() -> None:
        os._exit(0 if provider.submit(ORDER, again=False) == Job("job-1") else 1)

    poller = Stepped(submit, 1, signal.SIGSTOP, begins_to_read)
    wait_until(remote.jobs, "its request has arrived")
    signal.sigtimedwait([], 1.2)
    poller.go_on()
    assert poller.wait() == 0
