"""Each preset against exchanges written from what its provider documents. None was tried against a provider itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from operations_center.config.backends import PRESETS
from operations_center.providers import Artifact, Heard, InDoubt, Job, JobState, Order, Trouble
from operations_center.providers.http import HttpProvider
from tests.providers.conftest import ORDER, read_settings
from tests.providers.remote import Remote

SECRET = "k3y"

RUN_ID = ORDER.run_id

Exchange = tuple[str, int, Any]

Speak = Callable[..., "Spoken"]


class Spoken:
    """A provider as a preset speaks with it, and a server that answers one exchange after the other."""

    def __init__(self, remote: Remote, path: Path, preset: str, own: str, exchanges: list[Exchange]) -> None:
        for line, status, body in exchanges:
            remote.rule(line, times=1, status=status, body=body)
        secret = "" if preset == "ray" else 'secret_env = "KEY"\n'
        base = "{url}/v1" if preset in ("replicate", "luma", "openai-batch") else "{url}"
        text = (
            '[roles.goal]\nbackend = "video"\n[backends.video]\nkind = "http_job"\nmax_concurrent = 1\n'
            f'preset = "{preset}"\nbase_url = "{base.format(url=remote.url)}"\n{secret}{own}'
        )
        self.provider = HttpProvider(read_settings(path, text), {"KEY": SECRET})
        self.remote = remote

    def submit(self, order: Order = ORDER) -> Job:
        job = self.provider.submit(order, again=False)
        assert isinstance(job, Job), job
        return job

    def ask(self, job: Job) -> Heard:
        heard = self.provider.ask(job)
        assert isinstance(heard, Heard), heard
        assert heard.known
        return heard


@pytest.fixture
def spoken(tmp_path: Path, remote: Remote) -> Speak:
    def speak(preset: str, own: str, *exchanges: Exchange) -> Spoken:
        return Spoken(remote, tmp_path / "operations_center.toml", preset, own, list(exchanges))

    return speak


def downloaded(spoken: Spoken, heard: Heard, directory: Path) -> list[bytes]:
    found = []
    for output in heard.outputs:
        got = spoken.provider.download(output, directory)
        assert isinstance(got, Artifact), got
        found.append((directory / output.name).read_bytes())
    return found


def test_there_is_a_test_of_each_preset() -> None:
    tested = {name.removeprefix("test_").split("_")[0] for name in globals() if name.startswith("test_")}
    assert {path.stem.split("-")[0] for path in PRESETS.glob("*.toml")} <= tested


def test_fal_is_asked_at_the_urls_that_it_gives(spoken: Speak, tmp_path: Path) -> None:
    requests = "/fal-ai/flux/requests/80e7"
    urls = {
        "status_url": f"{{base}}{requests}/status",
        "response_url": f"{{base}}{requests}",
        "cancel_url": f"{{base}}{requests}/cancel",
    }
    fal = spoken(
        "fal",
        'submit = { url = "{base_url}/fal-ai/flux/dev", json = { prompt = "{prompt}", seed = 7 } }',
        ("POST /fal-ai/flux/dev", 200, {"status": "IN_QUEUE", "request_id": "80e7", "queue_position": 0, **urls}),
        (f"GET {requests}/status", 202, {"status": "IN_QUEUE", "queue_position": 1, **urls}),
        (f"GET {requests}/status", 202, {"status": "IN_PROGRESS", "logs": None, **urls}),
        (f"GET {requests}/status", 200, {"status": "COMPLETED", "metrics": {"inference_time": 3.7}, **urls}),
        (
            f"GET {requests}",
            200,
            {
                "images": [{"url": "{base}/made/a.jpeg", "content_type": "image/jpeg"}],
                "video": {"url": "{base}/made/b.mp4", "file_size": 4},
                "prompt": "x",
            },
        ),
        ("GET /made/a.jpeg", 200, "JPEG"),
        ("GET /made/b.mp4", 200, "MP4!"),
        (f"PUT {requests}/cancel", 400, {"status": "ALREADY_COMPLETED"}),
    )
    job = fal.submit()
    assert job.job_id == "80e7"
    assert [fal.ask(job).state for _ in range(2)] == [JobState.QUEUED, JobState.RUNNING]
    heard = fal.ask(job)
    assert [output.name for output in heard.outputs] == ["output-1.jpeg", "output-2.mp4"]
    assert downloaded(fal, heard, tmp_path) == [b"JPEG", b"MP4!"]
    assert isinstance(fal.provider.cancel(job), Trouble)
    submitted = fal.remote.requests()[0]
    assert submitted.headers["authorization"] == f"Key {SECRET}"
    assert '"seed": 7' in submitted.body


@pytest.mark.parametrize(
    ("status", "result"),
    [
        ({"status": "COMPLETED", "error": "Runner died", "error_type": "runner_disconnected"}, (500, {})),
        ({"status": "COMPLETED"}, (422, {"detail": [{"loc": ["body", "prompt"], "msg": "Runner died"}]})),
    ],
)
def test_fal_completes_with_an_error(spoken: Speak, status: Any, result: Any) -> None:
    urls = {"status_url": "{base}/r/1/status", "response_url": "{base}/r/1", "cancel_url": "{base}/r/1/cancel"}
    fal = spoken(
        "fal",
        'submit = { url = "{base_url}/fal-ai/x" }',
        ("POST /fal-ai/x", 200, {"request_id": "1", **urls}),
        ("GET /r/1/status", 200, status),
        ("GET /r/1", *result),
    )
    heard = fal.ask(fal.submit())
    assert heard.state is JobState.FAILED
    assert "Runner died" in (heard.reason or "")


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("{base}/d/out.png", ["output-1.png"]),
        (["{base}/d/0.webp", "{base}/d/1.webp"], ["output-1.webp", "output-2.webp"]),
        ({"video": "{base}/d/v.mp4", "seed": 3, "text": "hello"}, ["output-1.mp4"]),
        (["Once", " upon"], []),
        (None, []),
    ],
)
def test_replicate_answers_with_a_url_a_list_or_an_object(spoken: Speak, output: Any, names: list[str]) -> None:
    prediction = {
        "id": "gm3q",
        "urls": {"get": "{base}/v1/predictions/gm3q", "cancel": "{base}/v1/predictions/gm3q/cancel"},
    }
    replicate = spoken(
        "replicate",
        'submit = { json = { version = "5c7d", input = { prompt = "{prompt}" } } }',
        ("POST /v1/predictions", 201, {**prediction, "status": "starting", "output": None, "error": None}),
        ("GET /v1/predictions/gm3q", 200, {**prediction, "status": "starting", "error": None}),
        ("GET /v1/predictions/gm3q", 200, {**prediction, "status": "processing", "logs": "50%", "error": None}),
        ("GET /v1/predictions/gm3q", 200, {**prediction, "status": "succeeded", "output": output, "error": None}),
        ("POST /v1/predictions/gm3q/cancel", 200, {**prediction, "status": "canceled"}),
    )
    job = replicate.submit()
    assert set(job.urls) == {"status", "cancel"}
    assert [replicate.ask(job).state for _ in range(2)] == [JobState.QUEUED, JobState.RUNNING]
    heard = replicate.ask(job)
    assert (heard.state, [each.name for each in heard.outputs]) == (JobState.SUCCEEDED, names)
    assert replicate.provider.cancel(job) is None
    assert replicate.remote.requests()[0].headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("word", "state"),
    [("failed", JobState.FAILED), ("canceled", JobState.CANCELLED), ("aborted", JobState.CANCELLED)],
)
def test_replicate_ends_without_output(spoken: Speak, word: str, state: JobState) -> None:
    replicate = spoken(
        "replicate",
        'submit = { json = { version = "5c7d" } }',
        ("GET /v1/predictions/gm3q", 200, {"id": "gm3q", "status": word, "error": "CUDA out of memory"}),
    )
    heard = replicate.ask(Job("gm3q"))
    assert (heard.state, heard.reason) == (state, "CUDA out of memory")


RUNWAY = 'submit = { url = "{base_url}/v1/text_to_video", json = { model = "gen4.5", promptText = "{prompt}" } }'


def test_runway_reports_progress_and_outputs(spoken: Speak, tmp_path: Path) -> None:
    runway = spoken(
        "runway",
        RUNWAY,
        ("POST /v1/text_to_video", 200, {"id": "17f2"}),
        ("GET /v1/tasks/17f2", 200, {"id": "17f2", "status": "PENDING", "createdAt": "2026-01-01T00:00:00Z"}),
        ("GET /v1/tasks/17f2", 200, {"id": "17f2", "status": "THROTTLED"}),
        ("GET /v1/tasks/17f2", 200, {"id": "17f2", "status": "RUNNING", "progress": 0.4}),
        ("GET /v1/tasks/17f2", 200, {"id": "17f2", "status": "SUCCEEDED", "output": ["{base}/o/v.mp4?_jwt=a.b"]}),
        ("GET /o/v.mp4?_jwt=a.b", 200, "MP4"),
        ("DELETE /v1/tasks/17f2", 204, ""),
    )
    job = runway.submit()
    heard = [runway.ask(job) for _ in range(4)]
    assert [each.state for each in heard] == [
        JobState.QUEUED,
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.SUCCEEDED,
    ]
    assert heard[2].progress == 0.4
    assert downloaded(runway, heard[3], tmp_path) == [b"MP4"]
    assert runway.provider.cancel(job) is None
    assert {request.headers.get("x-runway-version") for request in runway.remote.requests()} == {"2024-11-06"}


@pytest.mark.parametrize(
    ("task", "state", "reason"),
    [
        (
            {"status": "FAILED", "failure": "Content moderation", "failureCode": "SAFETY.INPUT.TEXT"},
            JobState.FAILED,
            "Content moderation",
        ),
        ({"status": "FAILED", "failureCode": "INTERNAL"}, JobState.FAILED, "INTERNAL"),
        ({"status": "CANCELLED"}, JobState.CANCELLED, None),
    ],
)
def test_runway_ends_without_output(spoken: Speak, task: Any, state: JobState, reason: str | None) -> None:
    runway = spoken("runway", RUNWAY, ("GET /v1/tasks/17f2", 200, {"id": "17f2", **task}))
    heard = runway.ask(Job("17f2"))
    assert (heard.state, heard.reason) == (state, reason)


def test_luma_tells_its_state_and_its_assets(spoken: Speak) -> None:
    video = {"video": "{base}/cdn/v.mp4", "image": None, "progress_video": None}
    luma = spoken(
        "luma",
        'submit = { json = { prompt = "{prompt}", model = "ray-2" } }',
        ("POST /v1/generations", 201, {"id": "d1a", "state": "queued", "failure_reason": None, "assets": None}),
        ("GET /v1/generations/d1a", 200, {"id": "d1a", "state": "queued", "assets": None}),
        ("GET /v1/generations/d1a", 200, {"id": "d1a", "state": "dreaming", "assets": None}),
        ("GET /v1/generations/d1a", 200, {"id": "d1a", "state": "completed", "failure_reason": None, "assets": video}),
        ("GET /v1/generations/d1a", 200, {"id": "d1a", "state": "failed", "failure_reason": "400: bad prompt"}),
        ("DELETE /v1/generations/d1a", 204, ""),
    )
    job = luma.submit()
    heard = [luma.ask(job) for _ in range(4)]
    assert [each.state for each in heard] == [
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.SUCCEEDED,
        JobState.FAILED,
    ]
    assert [each.name for each in heard[2].outputs] == ["output-1.mp4"]
    assert heard[3].reason == "400: bad prompt"
    assert luma.provider.cancel(job) is None


def test_openai_batches_are_files_in_and_files_out(spoken: Speak, tmp_path: Path) -> None:
    batch = {"id": "batch_abc", "object": "batch", "input_file_id": "file-in", "errors": None}
    done = {**batch, "status": "completed", "output_file_id": "file-out", "error_file_id": "file-err"}
    openai = spoken(
        "openai-batch",
        "",
        ("POST /v1/batches", 200, {**batch, "status": "validating"}),
        ("GET /v1/batches/batch_abc", 200, {**batch, "status": "in_progress", "request_counts": {"completed": 1}}),
        ("GET /v1/batches/batch_abc", 200, {**batch, "status": "finalizing"}),
        ("GET /v1/batches/batch_abc", 200, done),
        ("GET /v1/files/file-out/content", 200, '{"a": 1}'),
        ("GET /v1/files/file-err/content", 200, '{"b": 2}'),
        ("POST /v1/batches/batch_abc/cancel", 200, {**batch, "status": "cancelling"}),
    )
    job = openai.submit(Order("r1", "t", "monthly", "file-in", "monthly\n\nfile-in", 1, 1))
    assert '"input_file_id": "file-in"' in openai.remote.requests()[0].body
    assert [openai.ask(job).state for _ in range(2)] == [JobState.RUNNING, JobState.RUNNING]
    heard = openai.ask(job)
    assert downloaded(openai, heard, tmp_path) == [b'{"a": 1}', b'{"b": 2}']
    assert {request.headers.get("authorization") for request in openai.remote.requests()} == {f"Bearer {SECRET}"}
    assert openai.provider.cancel(job) is None


@pytest.mark.parametrize(
    ("batch", "state", "reason"),
    [
        (
            {"status": "failed", "errors": {"object": "list", "data": [{"code": "x", "message": "line 3", "line": 3}]}},
            JobState.FAILED,
            "line 3",
        ),
        ({"status": "expired", "errors": None}, JobState.EXPIRED, None),
        ({"status": "cancelled", "errors": None}, JobState.CANCELLED, None),
    ],
)
def test_openai_batches_end_without_output(spoken: Speak, batch: Any, state: JobState, reason: str | None) -> None:
    openai = spoken("openai-batch", "", ("GET /v1/batches/b", 200, {"id": "b", **batch}))
    heard = openai.ask(Job("b"))
    assert (heard.state, heard.reason) == (state, reason)


@pytest.mark.parametrize("word", ["expired", "cancelled"])
def test_openai_batches_that_were_not_finished_leave_a_part_of_the_results(
    spoken: Speak, tmp_path: Path, word: str
) -> None:
    batch = {"id": "b", "status": word, "errors": None, "output_file_id": "file-out", "error_file_id": "file-err"}
    openai = spoken(
        "openai-batch",
        "",
        ("GET /v1/batches/b", 200, batch),
        ("GET /v1/files/file-out/content", 200, '{"a": 1}'),
        ("GET /v1/files/file-err/content", 200, '{"b": 2}'),
    )
    heard = openai.ask(Job("b"))
    assert heard.state is JobState(word)
    assert downloaded(openai, heard, tmp_path) == [b'{"a": 1}', b'{"b": 2}']


def test_ray_takes_an_id_of_ours_and_its_log_is_the_output(spoken: Speak, tmp_path: Path) -> None:
    job = {"type": "SUBMISSION", "job_id": None, "submission_id": RUN_ID, "entrypoint": "echo hello"}
    ray = spoken(
        "ray",
        "",
        ("POST /api/jobs/", 200, {"job_id": RUN_ID, "submission_id": RUN_ID}),
        (f"GET /api/jobs/{RUN_ID}", 200, {**job, "status": "PENDING", "message": "Job has not started yet."}),
        (f"GET /api/jobs/{RUN_ID}", 200, {**job, "status": "RUNNING"}),
        (f"GET /api/jobs/{RUN_ID}", 200, {**job, "status": "SUCCEEDED", "driver_exit_code": 0}),
        (f"GET /api/jobs/{RUN_ID}/logs", 200, {"logs": "hello\n"}),
        (f"GET /api/jobs/{RUN_ID}", 200, {**job, "status": "FAILED", "message": "exit code 3"}),
        (f"GET /api/jobs/{RUN_ID}", 200, {**job, "status": "STOPPED", "message": "Job was intentionally stopped."}),
        (f"POST /api/jobs/{RUN_ID}/stop", 200, {"stopped": True}),
    )
    submitted = ray.submit()
    assert submitted == Job(RUN_ID)
    assert f'"submission_id": "{RUN_ID}"' in ray.remote.requests()[0].body
    heard = [ray.ask(submitted) for _ in range(3)]
    assert [each.state for each in heard] == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert downloaded(ray, heard[2], tmp_path) == [b'{"logs":"hello\\n"}']
    failed, stopped = ray.ask(submitted), ray.ask(submitted)
    assert (failed.state, failed.reason) == (JobState.FAILED, "exit code 3")
    assert stopped.state is JobState.CANCELLED
    assert ray.provider.cancel(submitted) is None


def test_ray_is_asked_for_a_job_before_it_is_submitted_again(spoken: Speak) -> None:
    ray = spoken(
        "ray",
        "",
        ("POST /api/jobs/", 500, "Traceback"),
        (f"GET /api/jobs/{RUN_ID}", 404, f"Job {RUN_ID} does not exist"),
        ("POST /api/jobs/", 500, "Traceback"),
        (f"GET /api/jobs/{RUN_ID}", 200, {"submission_id": RUN_ID, "status": "PENDING"}),
    )
    assert isinstance(ray.provider.submit(ORDER, again=False), InDoubt)
    assert isinstance(ray.provider.submit(ORDER, again=True), InDoubt)
    assert ray.provider.submit(ORDER, again=True) == Job(RUN_ID)
    assert [request.method for request in ray.remote.requests()] == ["POST", "GET", "POST", "GET"]
