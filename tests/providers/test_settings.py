"""What a provider's backend may say, and each mistake in it on one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.config import HttpJobSettings, load_config, merged
from operations_center.config.http_job import JOB_STATES
from operations_center.config.placeholders import fill, placeholders_in
from operations_center.errors import ConfigError
from operations_center.providers import JobState

ROLE = '[roles.goal]\nbackend = "video"\n'

EXAMPLE = """
[backends.video]
kind = "http_job"
secret_env = "VIDEO_API_KEY"
submit = { method = "POST", url = "https://api.example.org/jobs", headers = { Authorization = "Bearer {secret}" }, json = { prompt = "{title}" } }
submit_timeout = "30s"
idempotency_header = "Idempotency-Key"
job_id = "id"
poll = { url = "https://api.example.org/jobs/{job_id}", status = "status", initial = "2s", factor = 1.5, max = "30s" }
status = { queued = "queued", processing = "running", succeeded = "succeeded", failed = "failed", cancelled = "cancelled" }
error = "error"
outputs = "outputs[].url"
thumbnails = "thumbnail_url"
output_hosts = ["cdn.example.org"]
max_output_size = "2GiB"
max_concurrent = 4
timeout = "1h"
reconcile = "manual"
min_age = "10m"
"""  # noqa: E501 - as the contract with its users has it

Mistakes = Callable[[str], list[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "operations_center.toml"


@pytest.fixture
def mistakes(path: Path) -> Mistakes:
    def find(text: str) -> list[str]:
        path.write_text(ROLE + text)
        with pytest.raises(ConfigError) as caught:
            load_config(path, {})
        return [line.removeprefix(f"cannot use {path}: backends.video.") for line in caught.value.lines]

    return find


def load(path: Path, text: str, **environ: str) -> HttpJobSettings:
    path.write_text(ROLE + text)
    settings = load_config(path, environ).backends["video"]
    assert isinstance(settings, HttpJobSettings)
    return settings


def test_the_documented_example_is_read(path: Path) -> None:
    video = load(path, EXAMPLE)
    assert (video.name, video.max_concurrent, video.timeout_ms) == ("video", 4, 3_600_000)
    assert video.submit.headers == {"Authorization": "Bearer {secret}"}
    assert video.submit.json == {"prompt": "{title}"}
    assert (video.poll.initial_ms, video.poll.factor, video.poll.max_ms) == (2_000, 1.5, 30_000)
    assert video.status["processing"] == "running"
    assert (video.output_hosts, video.max_output_size_bytes) == (("cdn.example.org",), 2 << 30)
    assert (video.reconcile, video.min_age_ms) == ("manual", 600_000)


def test_a_run_at_a_provider_always_has_a_deadline(path: Path) -> None:
    assert load(path, EXAMPLE.replace('timeout = "1h"\n', "")).timeout_ms == 86_400_000


def test_what_counts_is_shown_in_the_words_of_the_file(path: Path) -> None:
    path.write_text(ROLE + EXAMPLE)
    shown = merged(load_config(path, {"VIDEO_API_KEY": "s3cret"}))
    video = shown["backends"]["video"]
    assert video["submit"]["json"] == {"prompt": "{title}"}
    assert video["poll"]["max"] == "30s"
    assert "s3cret" not in str(shown)


def test_an_override_reaches_the_keys_of_a_provider(path: Path) -> None:
    video = load(path, EXAMPLE, OPERATIONS_CENTER_BACKENDS__VIDEO__POLL__MAX="5m")
    assert video.poll.max_ms == 300_000


def test_the_states_of_a_job_are_those_of_the_interface() -> None:
    assert list(JobState) == list(JOB_STATES)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            'prompt = "{title}"',
            'prompt = "{titel}"',
            'submit.json: unknown placeholder {titel} (did you mean "title"? or write {{titel}} for the text itself)',
        ),
        (
            'prompt = "{title}"',
            'prompt = ["{secret}"]',
            "submit.json: {secret} cannot stand here (name it in a header of submit)",
        ),
        (
            'url = "https://api.example.org/jobs",',
            'url = "https://api.example.org/jobs?key={secret}",',
            "submit.url: {secret} cannot stand here (name it in a header of submit)",
        ),
        (
            "jobs/{job_id}",
            "jobs/{title}",
            "poll.url: {title} cannot stand here (known are {base_url}, {job_id})",
        ),
        (
            'url = "https://api.example.org/jobs",',
            'url = "https://{title}.example.org/jobs",',
            "submit.url: it names no host of its own (write the host out)",
        ),
        (
            'url = "https://api.example.org/jobs",',
            'url = "https://me:pass@api.example.org/jobs",',
            "submit.url: it holds a user (name the secret by secret_env, and put {secret} into a header)",
        ),
        (
            "https://api.example.org/jobs/{job_id}",
            "{base_url}/jobs/{job_id}",
            "base_url: it is missing (give the URL that {base_url} stands for)",
        ),
        ('outputs[].url"', 'outputs[.url"', 'outputs: "outputs[.url" is not JMESPath: Expecting: star, got'),
        ('outputs[].url"', 'size(@)"', 'outputs: "size(@)" is not JMESPath: there is no function size (see'),
        ('"running"', '"runing"', 'status.processing: got "runing" (did you mean "running"?)'),
        (
            'succeeded = "succeeded"',
            'succeeded = "failed"',
            'status: no word means "succeeded" (add the provider\'s word for it)',
        ),
        (
            'secret_env = "VIDEO_API_KEY"\n',
            "",
            "secret_env: it is missing (name the variable that {secret} stands for)",
        ),
        (
            "Bearer {secret}",
            "Bearer",
            'secret_env: no header holds {secret} (add one, such as Authorization = "Bearer {secret}")',
        ),
        ('secret_env = "', 'secret_file = "key"\nsecret_env = "', "secret_file: there is a secret_env already (give"),
        ('job_id = "id"', "", "job_id: it is missing (say where the answer holds the id, or give own_id)"),
        ('job_id = "id"', 'own_id = "{task_id}"', "own_id: it is the same for several runs (put {run_id} into it)"),
        ('job_id = "id"', 'own_id = "{run_id}"', "own_id: it is submitted nowhere (put {job_id} into submit)"),
        ("{title}", "{job_id}", "submit: {job_id} is not known before the answer (give own_id)"),
        ('url = "https://api.example.org/jobs/{job_id}", ', "", "poll.url: it is missing (give it, or urls.status)"),
        ("jobs/{job_id}", "jobs", "poll.url: it is the same for all jobs (put {job_id} into it)"),
        (
            'error = "error"',
            'cancel = { url = "https://api.example.org/cancel" }',
            "cancel.url: it is the same for all jobs (put {job_id} into it)",
        ),
        (
            'error = "error"',
            'base_url = "https://api.example.org/{task_id}"',
            "base_url: {task_id} cannot stand here (it is no template)",
        ),
        ('error = "error"', 'cancel = { method = "PUT" }', "cancel.url: it is missing (give it, or urls.cancel)"),
        ("{title}", '", at = 2026-01-01, x = "', "submit.json: it holds what JSON cannot (give strings, numbers"),
        ('["cdn.example.org"]', '["https://cdn"]', 'output_hosts[0]: got "https://cdn" (give a list of hosts'),
        ('"Idempotency-Key"', '"Key:"', 'idempotency_header: got "Key:" (give the name of a header'),
        ('"manual"', '"often"', 'reconcile: got "often" (give "manual" or "auto")'),
        ('kind = "http_job"', 'kind = "http_job"\npreset = "fall"', 'preset: there is no preset "fall" (did you mean'),
    ],
)
def test_a_mistake_is_one_clear_line(mistakes: Mistakes, old: str, new: str, line: str) -> None:
    assert old in EXAMPLE
    (found,) = mistakes(EXAMPLE.replace(old, new, 1))
    assert found.startswith(line)


def test_mistakes_of_a_provider_are_reported_at_once(mistakes: Mistakes) -> None:
    text = EXAMPLE.replace("{title}", "{a}{b}").replace('"outputs[].url"', '"["').replace('"running"', '"x"')
    assert len(mistakes(text)) == 4


def test_a_preset_says_what_the_file_does_not(path: Path) -> None:
    video = load(
        path,
        """
        [backends.video]
        kind = "http_job"
        preset = "replicate"
        secret_env = "KEY"
        max_concurrent = 1
        submit = { json = { version = "v", input = { prompt = "{prompt}" } } }
        poll = { max = "1m" }
        status = { odd = "failed" }
        """,
    )
    assert video.submit.url == "{base_url}/predictions"
    assert video.submit.json == {"version": "v", "input": {"prompt": "{prompt}"}}
    assert (video.poll.max_ms, video.poll.status) == (60_000, "status")
    assert (video.status["odd"], video.status["succeeded"]) == ("failed", "succeeded")


def test_what_is_submitted_is_never_mixed_with_a_presets(path: Path) -> None:
    video = load(
        path,
        '[backends.video]\nkind = "http_job"\npreset = "fal"\nsecret_env = "KEY"\nmax_concurrent = 1\n'
        'submit = { url = "{base_url}/fal-ai/x", json = { text = "{title}" } }',
    )
    assert video.submit.json == {"text": "{title}"}


def test_placeholders_are_filled_inside_of_strings_only_and_once() -> None:
    values = {"title": 'a "quote", {body}', "body": "SMUGGLED"}
    template = {"{title}": ["x {title} y", 1, None, {"deep": "{{title}} {other"}]}
    assert placeholders_in(template) == {"title"}
    assert fill(template, values) == {"{title}": ['x a "quote", {body} y', 1, None, {"deep": "{title} {other"}]}
