from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operations_center.config import HttpJobSettings, load_config
from operations_center.providers import Order
from operations_center.providers.http import HttpProvider
from operations_center.providers.wire import Wire  # noqa: F401 - slow to import, and no test's time is to pass by it
from tests.providers.remote import Remote, provider_thread
from tests.providers.script import WORDS

SECRET = "s3cret/key"

SETTINGS = (
    """
[roles.goal]
backend = "video"
[backends.video]
kind = "http_job"
base_url = "{url}"
secret_env = "VIDEO_API_KEY"
submit_timeout = "20s"
job_id = "id"
error = "error"
progress = "progress"
progress_scale = 100
outputs = "outputs[].url"
thumbnails = "thumbnail_url"
max_concurrent = 4
[backends.video.submit]
url = "{{base_url}}/jobs"
headers = {{ Authorization = "Bearer {{secret}}", X-Run = "{{run_id}}" }}
json = {{ prompt = "{{prompt}}" }}
[backends.video.poll]
url = "{{base_url}}/jobs/{{job_id}}"
status = "status"
timeout = "19s"
"""
    + WORDS
)

ORDER = Order(
    run_id="r1-aaaaaa",
    task_id="t-1",
    title="A cat",
    body='on a "mat"',
    prompt='A cat\n\non a "mat"',
    attempt=1,
    fence=7,
)

Client = Callable[..., HttpProvider]


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with provider_thread(tmp_path / "provider") as remote:
        yield remote


def read_settings(path: Path, text: str) -> HttpJobSettings:
    path.write_text(text)
    settings = load_config(path, {}).backends["video"]
    assert isinstance(settings, HttpJobSettings)
    return settings


@pytest.fixture
def client(tmp_path: Path, remote: Remote) -> Client:
    """A client of the provider's server; each pair of texts changes its settings."""

    def make(*changes: tuple[str, str], secret: str | None = SECRET) -> HttpProvider:
        text = SETTINGS.format(url=remote.url)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        environment = {} if secret is None else {"VIDEO_API_KEY": secret}
        return HttpProvider(read_settings(tmp_path / "operations_center.toml", text), environment)

    return make
