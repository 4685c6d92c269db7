"""The provider's server is itself as true as the tests need it."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.providers.remote import Remote, provider_process, provider_thread
from tests.providers.script import Course, Provider
from tests.providers.server import content_of


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Remote]:
    with provider_thread(tmp_path / "provider") as remote:
        yield remote


def ask(method: str, url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content
    finally:
        connection.close()


def submit(provider: Remote, body: Any = None, **headers: str) -> str:
    status, job = ask("POST", f"{provider.url}/jobs", body or {}, **headers)
    assert status in (200, 201)
    return str(job["id"])


def test_a_submission_that_breaks_off_is_none(provider: Remote) -> None:
    address = urlsplit(provider.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(b'POST /jobs HTTP/1.1\r\nHost: provider\r\nContent-Length: 20\r\n\r\n{"prompt"')
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert provider.jobs() == []


def test_a_job_goes_its_course_and_makes_its_files(provider: Remote) -> None:
    provider.goes(Course(polls=3, outputs=("a.mp4", "b.mp4"), thumbnail="c.jpg", size=70))
    job = submit(provider, {"prompt": "a cat"})
    words = [ask("GET", f"{provider.url}/jobs/{job}")[1]["status"] for _ in range(3)]
    assert words == ["queued", "running", "succeeded"]
    shown = ask("GET", f"{provider.url}/jobs/{job}")[1]
    assert ask("GET", shown["outputs"][1]["url"]) == (200, content_of(job, "b.mp4", 70))
    assert ask("GET", shown["thumbnail_url"])[0] == 200
    (remembered,) = provider.jobs()
    assert (remembered.body, remembered.polls) == ({"prompt": "a cat"}, 4)


def test_it_remembers_jobs_and_requests_when_it_is_killed_and_started_again(tmp_path: Path) -> None:
    with provider_process(tmp_path) as provider:
        job = submit(provider, {"n": 1}, Authorization="Bearer s")
        provider.rule("submit", vanish=True)
        with pytest.raises(http.client.RemoteDisconnected):
            submit(provider, {"n": 2})
    with provider_process(tmp_path) as provider:
        assert [each.body for each in provider.jobs()] == [{"n": 1}, {"n": 2}]
        assert ask("GET", f"{provider.url}/jobs/{job}")[0] == 200
        assert submit(provider) == "job-3"
        assert provider.requests("submit")[0].headers["authorization"] == "Bearer s"


def test_rules_mean_certain_requests_and_only_so_often(provider: Remote) -> None:
    first, second = submit(provider, {"n": "one"}), submit(provider, {"n": "two"})
    provider.rule(
        "poll", match="two", skip=1, times=1, status=429, headers={"Retry-After": "7"}, body={"detail": "slow"}
    )
    provider.rule("poll", job=first, word="dreaming")
    answers = [ask("GET", f"{provider.url}/jobs/{second}") for _ in range(3)]
    assert [status for status, _ in answers] == [200, 429, 200]
    assert answers[1][1] == {"detail": "slow"}
    assert ask("GET", f"{provider.url}/jobs/{first}")[1]["status"] == "dreaming"


@pytest.mark.parametrize(
    ("effect", "jobs"), [({"status": 429}, 0), ({"status": 500, "accept": True}, 1), ({"status": 502}, 0)]
)
def test_a_refusal_makes_no_job_unless_the_test_wants_it(provider: Remote, effect: dict[str, Any], jobs: int) -> None:
    provider.rule("submit", **effect)
    assert ask("POST", f"{provider.url}/jobs", {})[0] == effect["status"]
    assert len(provider.jobs()) == jobs


def test_keys_and_ids_of_the_client_make_one_job(provider: Remote) -> None:
    provider.is_now(Provider(idempotent=True, own_ids=True))
    assert submit(provider, {}, **{"Idempotency-Key": "k"}) == submit(provider, {}, **{"Idempotency-Key": "k"})
    assert submit(provider, {"submission_id": "mine"}) == "mine"
    assert ask("POST", f"{provider.url}/jobs", {"submission_id": "mine"})[0] == 409
    assert len(provider.jobs()) == 2


def test_to_cancel_an_ended_job_may_delete_it(provider: Remote) -> None:
    provider.is_now(Provider(cancel_deletes=True, course=Course(polls=2)))
    running, ended = submit(provider), submit(provider)
    for _ in range(2):
        ask("GET", f"{provider.url}/jobs/{ended}")
    for job in (running, ended):
        assert ask("DELETE", f"{provider.url}/jobs/{job}")[0] == 200
    assert ask("GET", f"{provider.url}/jobs/{running}")[1]["status"] == "cancelled"
    assert ask("GET", f"{provider.url}/jobs/{ended}")[0] == 404


def test_urls_that_have_expired_become_fresh_by_another_poll(provider: Remote) -> None:
    provider.goes(Course(expired=1))
    job = submit(provider)
    urls = [ask("GET", f"{provider.url}/jobs/{job}")[1]["outputs"][0]["url"] for _ in range(2)]
    assert [ask("GET", url)[0] for url in urls] == [403, 200]


def test_answers_may_be_truncated_reset_or_of_another_shape(provider: Remote) -> None:
    job = submit(provider)
    provider.rule("poll", times=1, truncate=5)
    provider.rule("poll", times=1, reset=True)
    provider.rule("poll", times=1, body="<html>")
    url = f"{provider.url}/jobs/{job}"
    with pytest.raises(http.client.IncompleteRead):
        ask("GET", url)
    with pytest.raises(ConnectionResetError):
        ask("GET", url)
    with pytest.raises(json.JSONDecodeError):
        ask("GET", url)
    assert ask("GET", url)[0] == 200


def test_a_job_can_be_forgotten_or_not_be_known_yet(provider: Remote) -> None:
    provider.is_now(Provider(hidden=1))
    job = submit(provider)
    url = f"{provider.url}/jobs/{job}"
    assert [ask("GET", url)[0] for _ in range(2)] == [404, 200]
    provider.rule("poll", times=1, forget=True)
    assert [ask("GET", url)[0] for _ in range(2)] == [404, 404]


def test_requests_without_the_secret_are_refused(provider: Remote) -> None:
    provider.is_now(Provider(secret="s3cret"))
    assert ask("POST", f"{provider.url}/jobs", {})[0] == 401
    assert ask("POST", f"{provider.url}/jobs", {}, Authorization="Bearer s3cret")[0] == 201


def test_canned_answers_stand_for_any_page(provider: Remote) -> None:
    provider.rule("GET /v1/x?y=1", status=200, body={"next": "{base}/v1/z"})
    assert ask("GET", f"{provider.url}/v1/x?y=1") == (200, {"next": f"{provider.url}/v1/z"})
    assert ask("GET", f"{provider.url}/v1/x?y=2")[0] == 404
