"""Provider runs as their user has them: real watchers, and a provider that is a process of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operations_center.boards.local import NewTask
from operations_center.model import Outcome, Proof, RunState, TaskState
from tests.fleet import Fleet
from tests.providers.remote import Remote, provider_process
from tests.providers.script import Course, Provider

CONFIG = """
[center]
cgroup = "off"
[roles.goal]
backend = "video"
concurrency = 50
poll_interval = "10s"
retry_backoff = {{ initial = "0s" }}
[backends.video]
kind = "http_job"
base_url = "{url}"
submit_timeout = "2s"
job_id = "id"
error = "error"
progress = "progress"
outputs = "outputs[].url"
thumbnails = "thumbnail_url"
max_concurrent = {cap}
timeout = "{timeout}"
grace = "1s"
{more}
[backends.video.submit]
url = "{{base_url}}/jobs"
headers = {{ X-Run = "{{run_id}}" }}
json = {{ prompt = "{{prompt}}" }}
[backends.video.poll]
url = "{{base_url}}/jobs/{{job_id}}"
status = "status"
timeout = "2s"
initial = "20ms"
max = "50ms"
[backends.video.cancel]
url = "{{base_url}}/jobs/{{job_id}}/cancel"
[backends.video.status]
queued = "queued"
running = "running"
succeeded = "succeeded"
failed = "failed"
cancelled = "cancelled"
"""


def configure(fleet: Fleet, remote: Remote, more: str = "", cap: int = 4, timeout: str = "1h") -> None:
    fleet.configure(CONFIG.format(url=remote.url, cap=cap, timeout=timeout, more=more))


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with provider_process(tmp_path / "provider") as remote:
        yield remote


def watch(fleet: Fleet) -> None:
    fleet.run("watch", "--role", "goal", "--once")


def the_run(fleet: Fleet) -> Any:
    with fleet.center() as center:
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=10)
        return run


def the_task(fleet: Fleet) -> Any:
    with fleet.center() as center:
        (task,) = center.board.tasks()
        return task


def add(fleet: Fleet, count: int = 1) -> None:
    with fleet.center() as center:
        center.board.add([NewTask(f"film {number}", "goal", "of a cat") for number in range(count)])


def test_a_job_is_submitted_polled_fetched_and_its_task_is_done(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.is_now(Provider(course=Course(polls=3, outputs=("a.mp4", "b.mp4"), thumbnail="t.jpg")))
    add(fleet)
    watch(fleet)
    run = the_run(fleet)
    assert (run.state, run.outcome, run.proof) == (RunState.CLOSED, Outcome.SUCCEEDED, Proof.PROVIDER_ANSWERED)
    assert the_task(fleet).state is TaskState.DONE
    assert len(list((fleet.state.run(run.run_id) / "artifacts").iterdir())) == 3
    (job,) = remote.jobs()
    assert job.job_id == run.provider_job_id
    assert not fleet.broken_promises()
