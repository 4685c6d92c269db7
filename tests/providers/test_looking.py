"""What comes of looking after a job: nothing is over while something of it is missing, and nothing half-made stays."""

from pathlib import Path
from typing import Any

import pytest

from operations_center.providers import Job, JobState
from operations_center.providers.looking import Going, Over, Unsure, look_after
from tests.providers.conftest import Client
from tests.providers.remote import Remote
from tests.providers.script import Course, Provider

JOB = Job("job-1")


@pytest.mark.parametrize(
    ("fresh", "then"),
    [
        ({"status": "running"}, Going),
        ({"status": "succeeded", "outputs": []}, Over),
        ({"status": "succeeded"}, Over),
        ({"status": "succeeded", "outputs": [{"url": "/files/job-1/film.mp4?v=1"}]}, Unsure),
    ],
    ids=str,
)
def test_a_job_is_not_over_while_its_provider_has_no_fresh_url(
    remote: Remote, client: Client, tmp_path: Path, fresh: dict[str, Any], then: type
) -> None:
    remote.goes(Course(expired=1))
    remote.post({})
    remote.rule("poll", skip=1, body=fresh)
    provider = client()
    assert isinstance(look_after(provider, JOB, tmp_path / "artifacts"), Unsure)
    finding = look_after(provider, JOB, tmp_path / "artifacts")
    assert isinstance(finding, then)
    if isinstance(finding, Over):
        assert finding.heard.reason == "the answer names no output"


@pytest.mark.parametrize("status", [None, 404, 500])
def test_what_a_job_that_has_not_succeeded_has_made_is_taken_along_where_it_can_be(
    remote: Remote, client: Client, tmp_path: Path, status: int | None
) -> None:
    remote.goes(Course())
    remote.post({})
    remote.rule("poll", body={"status": "cancelled", "outputs": [{"url": "/files/job-1/film.mp4?v=1"}]})
    if status is not None:
        remote.rule("download", status=status)
    finding = look_after(client(), JOB, tmp_path)
    assert isinstance(finding, Over)
    assert finding.heard.state is JobState.CANCELLED
    assert [each.name for each in finding.artifacts] == ([] if status else ["output-1.mp4"])
    assert [path.name for path in tmp_path.glob("output*")] == [each.name for each in finding.artifacts]


def test_a_job_that_its_cancellation_deletes_is_cancelled(remote: Remote, client: Client, tmp_path: Path) -> None:
    remote.goes(Course(polls=5))
    remote.post({})
    remote.rule("cancel", forget=True, status=200)
    finding = look_after(client(), JOB, tmp_path, end=True)
    assert isinstance(finding, Over)
    assert finding.heard.state is JobState.CANCELLED


def test_a_job_that_may_have_ended_is_not_cancelled(remote: Remote, client: Client, tmp_path: Path) -> None:
    remote.is_now(Provider(course=Course(end="COMPLETE"), cancel_deletes=True))
    remote.post({})
    finding = look_after(client(), JOB, tmp_path, end=True)
    assert isinstance(finding, Unsure)
    assert "COMPLETE" in finding.reason
    assert not remote.requests("cancel")


def test_a_job_that_is_not_found_is_not_taken_for_cancelled(remote: Remote, client: Client, tmp_path: Path) -> None:
    remote.goes(Course(polls=5))
    remote.post({})
    remote.rule("poll", forget=True)
    assert isinstance(look_after(client(), JOB, tmp_path, end=True), Unsure)
    assert not remote.requests("cancel")


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_what_a_killed_process_has_left_half_written_goes_with_the_jobs_end(
    remote: Remote, client: Client, tmp_path: Path, end: str
) -> None:
    remote.goes(Course(end=end, outputs=() if end != "succeeded" else ("film.mp4",)))
    remote.post({})
    left = tmp_path / ".output-9.mov.12345678.part"
    left.write_text("half")
    finding = look_after(client(), JOB, tmp_path)
    assert isinstance(finding, Over)
    assert finding.heard.state is JobState(end)
    assert not left.exists()


def test_a_job_that_its_provider_cannot_cancel_goes_on_and_is_no_fault_of_the_provider(
    remote: Remote, client: Client, tmp_path: Path
) -> None:
    remote.goes(Course(polls=1_000))
    remote.post({})
    provider = client(('[backends.video.cancel]\nurl = "{base_url}/jobs/{job_id}/cancel"\n', ""))
    finding = look_after(provider, JOB, tmp_path, end=True)
    assert isinstance(finding, Unsure)
    assert (finding.ill, finding.may_pass) == (None, False)
    assert remote.requests("cancel") == []
