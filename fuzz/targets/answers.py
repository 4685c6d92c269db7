"""Whatever a provider answers: it becomes a value of the interface, within bounds."""

from typing import Any

import hypothesis.strategies as st

from fuzz.sandbox import Sandbox
from operations_center.config import HttpJobSettings, load_config
from operations_center.providers import Heard
from operations_center.providers.addresses import Reach, found_at
from operations_center.providers.answers import Answers, Said
from operations_center.providers.secret import Secret

CONFIG = """
[roles.goal]
backend = "video"
[backends.video]
kind = "http_job"
secret_env = "VIDEO_KEY"
job_id = "id"
urls = { status = "urls.status", result = "urls.result", cancel = "urls.cancel" }
progress = "progress"
status = { done = "succeeded", failed = "failed" }
error = "error"
failure = "failure"
outputs = "outputs[].url"
thumbnails = "thumbnail"
output_hosts = ["cdn.example.org"]
max_concurrent = 1
[backends.video.submit]
url = "https://api.example.org/jobs"
headers = { Authorization = "Bearer {secret}" }
json = { prompt = "{title}" }
[backends.video.poll]
url = "https://api.example.org/jobs/{job_id}"
status = "status"
"""
SECRET = "SECRET-value"
KEYS = (
    "id",
    "status",
    "urls",
    "result",
    "cancel",
    "outputs",
    "url",
    "error",
    "message",
    "progress",
    "failure",
    "thumbnail",
)
TEXTS = (
    *("done", "failed", "\ud800", "\x1b]0;x\x07", SECRET, "x" * 100_000, "..", "a/../b", "\0"),
    *("https://api.example.org/a", "http://api.example.org/a", "https://api.example.org:22/a", "//127.0.0.1/a"),
    *(
        f"https://cdn.example.org/{SECRET}.png",
        "file:///etc/passwd",
        "https://u:p@cdn.example.org/a",
        "https://[::1]/a",
    ),
)


def _answers() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(TEXTS), st.text(max_size=20)
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=5),
            st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), inner, max_size=6),
        ),
        max_leaves=20,
    )


class AnswersOfAProvider:
    def __init__(self, sandbox: Sandbox) -> None:
        file = sandbox.inside / "operations_center.toml"
        file.write_text(CONFIG)
        settings = load_config(file, {}).backends["video"]
        assert isinstance(settings, HttpJobSettings)
        self._answers = Answers(settings, Secret.of(settings, {"VIDEO_KEY": SECRET}))
        self._reach = Reach(settings)

    @property
    def inputs(self) -> st.SearchStrategy[tuple[int, Any]]:
        statuses = st.sampled_from([200, 201, 204, 302, 400, 401, 404, 408, 409, 418, 429, 500, 503])
        return st.tuples(statuses, _answers())

    def attempt(self, value: tuple[int, Any]) -> None:
        status, document = value
        said = Said(status, "https://api.example.org/jobs", document)
        self._answers.refusal(said)
        job = self._answers.job(said, None, self._reach.is_api)
        if job is not None:
            assert all(self._reach.is_api(url) for url in job.urls.values()), job
            assert SECRET not in repr(job), job
        heard = self._answers.heard(said)
        if isinstance(heard, Heard):
            ended = self._answers.finished(heard, said)
            assert SECRET not in repr(ended), ended
            for output in getattr(ended, "outputs", ()):
                self._reach.obstacle(output.url)
        for text in TEXTS:
            self._reach.obstacle(found_at("https://api.example.org/jobs", text))

    def close(self) -> None:
        return
