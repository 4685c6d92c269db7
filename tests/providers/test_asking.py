"""What a provider is heard to say of a job, however it says it."""

from typing import Any

import pytest

from operations_center.providers import Heard, Ill, InDoubt, Job, JobState, Kind, Output, Trouble, answers
from operations_center.providers.addresses import found_at
from tests.providers.conftest import ORDER, SECRET, Client
from tests.providers.remote import Remote
from tests.providers.script import Course, Provider

JOB = Job("job-1")


def submitted(remote: Remote, course: Course | None = None) -> Job:
    remote.goes(course or Course())
    remote.post({"prompt": ORDER.prompt})
    return Job(remote.jobs()[-1].job_id)


def test_a_job_is_followed_to_its_end(remote: Remote, client: Client) -> None:
    job = submitted(remote, Course(polls=4, outputs=("a.MP4", "b.tar.gz"), thumbnail="c.jpg"))
    provider = client()
    heard = [provider.ask(job) for _ in range(4)]
    assert [(each.state, each.progress) for each in heard if isinstance(each, Heard)] == [
        (JobState.QUEUED, 0.25),
        (JobState.RUNNING, 0.5),
        (JobState.RUNNING, 0.75),
        (JobState.SUCCEEDED, 1.0),
    ]
    last = heard[-1]
    assert isinstance(last, Heard)
    files = f"{remote.url}/files/job-1"
    assert last.outputs == (
        Output(f"{files}/a.MP4?v=1", "output-1.mp4", Kind.OUTPUT),
        Output(f"{files}/b.tar.gz?v=1", "output-2.gz", Kind.OUTPUT),
        Output(f"{files}/c.jpg?v=1", "thumbnail-1.jpg", Kind.THUMBNAIL),
    )


def test_a_failed_job_says_why_on_one_line_and_without_the_secret(remote: Remote, client: Client) -> None:
    job = submitted(remote, Course(end="failed", error={"code": "E1", "message": f"no\nGPU for {SECRET}"}))
    heard = client().ask(job)
    assert isinstance(heard, Heard)
    assert (heard.state, heard.reason, heard.outputs) == (JobState.FAILED, "no GPU for ***", ())


def test_a_word_that_is_not_in_the_map_means_running_and_is_told(remote: Remote, client: Client) -> None:
    job = submitted(remote)
    remote.rule("poll", word="dreaming\nof " + "sheep" * 100)
    heard = client().ask(job)
    assert isinstance(heard, Heard)
    assert (heard.state, heard.known) == (JobState.RUNNING, False)
    assert heard.word.startswith("dreaming of sheep")
    assert len(heard.word) == 60


@pytest.mark.parametrize(
    ("effect", "ill", "wait"),
    [
        ({"status": 404}, Ill.NOT_FOUND, None),
        ({"status": 410}, Ill.NOT_FOUND, None),
        ({"status": 401}, Ill.UNAUTHORIZED, None),
        ({"status": 403}, Ill.UNAUTHORIZED, None),
        ({"status": 429, "headers": {"Retry-After": "3"}}, Ill.THROTTLED, 3_000),
        ({"status": 503, "headers": {"Retry-After": "3"}}, Ill.FAILING, 3_000),
        ({"status": 500}, Ill.FAILING, None),
        ({"status": 408}, Ill.FAILING, None),
        ({"status": 302, "headers": {"Location": "{base}/jobs/job-1"}}, Ill.UNREADABLE, None),
        ({"status": 400}, Ill.UNREADABLE, None),
        ({"vanish": True}, Ill.FAILING, None),
        ({"reset": True}, Ill.FAILING, None),
        ({"truncate": 10}, Ill.FAILING, None),
        ({"body": "<html>"}, Ill.UNREADABLE, None),
        ({"body": "[]"}, Ill.UNREADABLE, None),
        ({"body": {"status": {"a": 1}}}, Ill.UNREADABLE, None),
        ({"body": {"status": None}}, Ill.UNREADABLE, None),
        ({"endless": True}, Ill.UNREADABLE, None),
    ],
    ids=str,
)
def test_an_answer_that_says_nothing_of_the_job_says_what_is_wrong(
    remote: Remote, client: Client, effect: dict[str, Any], ill: Ill, wait: int | None
) -> None:
    job = submitted(remote)
    remote.rule("poll", **effect)
    trouble = client().ask(job)
    assert isinstance(trouble, Trouble)
    assert (trouble.ill, trouble.retry_after_ms) == (ill, wait)


@pytest.mark.parametrize("effect", [{"drip": 0.2}, {"delay": 30.0}], ids=str)
def test_an_answer_that_takes_too_long_is_not_waited_for(
    remote: Remote, client: Client, effect: dict[str, Any]
) -> None:
    job = submitted(remote)
    remote.rule("poll", **effect)
    trouble = client(('timeout = "19s"', 'timeout = "400ms"')).ask(job)
    assert isinstance(trouble, Trouble)
    assert trouble.ill is Ill.FAILING


def test_nobody_listens(client: Client) -> None:
    trouble = client(('base_url = "http://127.0.0.1:', 'base_url = "http://127.0.0.1:1/')).ask(JOB)
    assert isinstance(trouble, Trouble)
    assert trouble.ill is Ill.FAILING


def test_without_its_secret_nothing_is_asked(remote: Remote, client: Client) -> None:
    trouble = client(secret=None).ask(JOB)
    assert trouble == Trouble(Ill.UNAUTHORIZED, "VIDEO_API_KEY is not set")
    assert remote.requests() == []


def test_only_what_is_the_same_for_all_jobs_is_sent_with_a_poll(remote: Remote, client: Client) -> None:
    client().ask(submitted(remote))
    (poll,) = remote.requests("poll")
    assert poll.headers["authorization"] == f"Bearer {SECRET}"
    assert "x-run" not in poll.headers


def test_a_job_that_completes_with_an_error_has_failed(remote: Remote, client: Client) -> None:
    job = submitted(remote, Course(error="out of memory"))
    heard = client(('error = "error"', 'error = "error"\nfailure = "error"')).ask(job)
    assert isinstance(heard, Heard)
    assert (heard.state, heard.reason) == (JobState.FAILED, "out of memory")


RESULT = (
    "[backends.video.cancel]",
    '[backends.video.result]\nurl = "{base_url}/jobs/{job_id}/result"\n[backends.video.cancel]',
)


def test_what_a_job_has_made_may_be_told_apart(remote: Remote, client: Client) -> None:
    job = submitted(remote, Course(polls=2))
    provider = client(RESULT)
    assert len(remote.requests("result")) == 0
    heard = [provider.ask(job) for _ in range(2)]
    assert len(remote.requests("result")) == 1
    assert isinstance(heard[1], Heard)
    assert [output.name for output in heard[1].outputs] == ["output-1.mp4"]


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        ({"status": 422, "body": {"detail": [{"msg": "bad seed"}]}}, JobState.FAILED),
        ({"status": 404}, Ill.NOT_FOUND),
        ({"status": 500}, Ill.FAILING),
        ({"status": 429}, Ill.THROTTLED),
        ({"status": 302}, Ill.UNREADABLE),
        ({"body": "<html>"}, Ill.UNREADABLE),
    ],
    ids=str,
)
def test_a_result_that_is_refused_is_a_failed_job_and_one_that_is_out_of_reach_is_not(
    remote: Remote, client: Client, effect: dict[str, Any], expected: JobState | Ill
) -> None:
    job = submitted(remote)
    remote.rule("result", **effect)
    heard = client(RESULT).ask(job)
    assert (heard.state if isinstance(heard, Heard) else heard.ill) is expected


def test_a_success_without_an_output_says_so(remote: Remote, client: Client) -> None:
    heard = client().ask(submitted(remote, Course(outputs=())))
    assert isinstance(heard, Heard)
    assert (heard.state, heard.outputs, heard.reason) == (JobState.SUCCEEDED, (), "the answer names no output")


def test_a_job_with_more_outputs_than_anybody_wants_has_failed(remote: Remote, client: Client) -> None:
    names = tuple(f"{number}.png" for number in range(101))
    heard = client().ask(submitted(remote, Course(outputs=names)))
    assert isinstance(heard, Heard)
    assert heard.state is JobState.FAILED


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("/made/x.png", "{base}/made/x.png", "output-1.png"),
        ("./job-1/logs", "{base}/jobs/job-1/logs", "output-1"),
        ("https://cdn.example.org/a/../../etc/pass%2Fwd.so.1?x=.sh", None, "output-1.1"),
        ("https://cdn.example.org/ü b.webm#.exe", "https://cdn.example.org/%C3%BC%20b.webm#.exe", "output-1.webm"),
        ("//evil.example.org/x.mp4", None, "output-1.mp4"),
        ("file:///etc/passwd.txt", None, "output-1.txt"),
        ("just text", "just%20text", "output-1"),
        ("http://[/x.mp4", None, "output-1"),
        ("https://cdn.example.org/x." + "e" * 30, None, "output-1"),
    ],
)
def test_names_of_files_come_from_a_counter_and_a_plain_extension(
    remote: Remote, client: Client, text: str, url: str | None, name: str
) -> None:
    job = submitted(remote)
    remote.rule("poll", body={"status": "succeeded", "outputs": [{"url": text}, {"url": text}, {"url": 3}]})
    heard = client().ask(job)
    assert isinstance(heard, Heard)
    (output,) = heard.outputs
    assert output.name == name
    assert output.url == (text if url is None else url.replace("{base}", remote.url))


def test_the_urls_that_the_provider_gave_are_asked(remote: Remote, client: Client) -> None:
    job = submitted(remote)
    provider = client()
    provider.ask(Job("unknown", {"status": f"{remote.url}/jobs/{job.job_id}"}))
    assert provider.cancel(Job("unknown", {"cancel": f"{remote.url}/jobs/{job.job_id}/cancel"})) is None
    provider.ask(Job(job.job_id, {"status": f"{remote.other_host}/jobs/stolen"}))
    assert [request.job for request in remote.requests() if request.job] == [job.job_id] * 3


def test_an_id_cannot_lead_to_another_page(remote: Remote, client: Client) -> None:
    client().ask(Job("../control/jobs?x#y"))
    assert remote.requests()[-1].path == "/jobs/..%2Fcontrol%2Fjobs%3Fx%23y"


@pytest.mark.parametrize("progress", [f"1{'0' * 400}", f"-1{'0' * 400}", "1e999", "NaN", "true"])
def test_a_progress_that_is_no_sensible_number_is_none(remote: Remote, client: Client, progress: str) -> None:
    submitted(remote)
    remote.rule("poll", body=f'{{"status": "running", "progress": {progress}}}')
    assert client().ask(JOB) == Heard(JobState.RUNNING, "running")


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"message":', "}")])
def test_an_error_that_is_nested_without_end_is_a_failure_without_a_reason(
    remote: Remote, client: Client, opened: str, closed: str
) -> None:
    submitted(remote)
    remote.rule("poll", body=f'{{"status": "failed", "error": {opened * 700}1{closed * 700}}}')
    assert client().ask(JOB) == Heard(JobState.FAILED, "failed")


def test_outputs_that_are_nested_without_end_are_none(remote: Remote, client: Client) -> None:
    submitted(remote)
    remote.rule("poll", body=f'{{"status": "succeeded", "outputs": [{{"url": {"[" * 700}"/a"{"]" * 700}}}]}}')
    heard = client().ask(JOB)
    assert isinstance(heard, Heard)
    assert (heard.state, heard.outputs) == (JobState.SUCCEEDED, ())
    assert heard.reason


def test_a_running_job_is_cancelled(remote: Remote, client: Client) -> None:
    job = submitted(remote, Course(polls=5))
    provider = client()
    assert provider.cancel(job) is None
    heard = provider.ask(job)
    assert isinstance(heard, Heard)
    assert heard.state is JobState.CANCELLED


@pytest.mark.parametrize(("status", "ill"), [(404, Ill.NOT_FOUND), (500, Ill.FAILING), (400, Ill.UNREADABLE)])
def test_a_cancellation_that_fails_says_why(remote: Remote, client: Client, status: int, ill: Ill) -> None:
    job = submitted(remote)
    remote.rule("cancel", status=status)
    trouble = client().cancel(job)
    assert isinstance(trouble, Trouble)
    assert trouble.ill is ill


def test_pauses_grow_with_jitter_and_never_undercut_the_provider(client: Client) -> None:
    provider = client(('timeout = "19s"', 'initial = "1s"\nfactor = 2\nmax = "10s"'))
    for asked, pause in ((1, 1_000), (2, 2_000), (3, 4_000), (50, 10_000), (10_000, 10_000)):
        pauses = {provider.pause_ms(asked, None) for _ in range(50)}
        assert pause * 0.8 <= min(pauses) < max(pauses) <= pause * 1.2
    assert min(provider.pause_ms(1, 30_000) for _ in range(50)) >= 30_000
    assert max(provider.pause_ms(1, 10**12) for _ in range(50)) <= 3_600_000 * 1.2


def test_a_new_job_that_is_not_known_yet_is_not_found(remote: Remote, client: Client) -> None:
    job = submitted(remote)
    remote.is_now(Provider(hidden=1))
    provider = client()
    first, second = provider.ask(job), provider.ask(job)
    assert isinstance(first, Trouble)
    assert first.ill is Ill.NOT_FOUND
    assert isinstance(second, Heard)


def test_no_more_urls_are_looked_at_than_there_may_be(
    remote: Remote, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, found = submitted(remote), []

    def counted(base: str, text: str) -> str:
        found.append(text)
        return found_at(base, text)

    monkeypatch.setattr(answers, "found_at", counted)
    remote.rule("poll", body={"status": "succeeded", "outputs": [{"url": f"/{number}"} for number in range(50_000)]})
    heard = client().ask(job)
    assert isinstance(heard, Heard)
    assert (heard.state, heard.reason) == (JobState.FAILED, "it has made more than 100 files (most_outputs)")
    assert len(found) == 101


def test_nothing_that_an_answer_repeats_of_the_secret_is_kept(remote: Remote, client: Client) -> None:
    secret, quoted = SECRET, SECRET.replace("/", "%2f")
    changes = ("[backends.video.poll]", '[backends.video.urls]\nstatus = "status_url"\n[backends.video.poll]')
    remote.rule("submit", body={"id": "job-9", "status_url": f"{remote.url}/jobs/job-9?key={quoted}"}, times=1)
    assert client(changes).submit(ORDER, again=False) == Job("job-9")
    remote.rule("submit", body={"id": f"job-{quoted}"}, times=1)
    assert isinstance(client().submit(ORDER, again=False), InDoubt)
    remote.rule("poll", body={"status": f"odd {secret}", "outputs": []})
    assert secret not in str(client().ask(Job("job-9")))
