"""A fleet whose tasks are jobs at the provider's server, and what a test does with it and asks of it."""

import os
import signal
from typing import Any

# Imported before a watcher is forked: a deadline of a second does not pass by it.
import operations_center.providers.wire  # noqa: F401
from operations_center.boards.local import NewTask
from operations_center.model import Run
from operations_center.watcher import Watcher
from tests.crash.job_steps import after
from tests.fleet import Fleet
from tests.points import Stepped
from tests.providers.remote import Remote
from tests.providers.script import WORDS, Course

CONFIG = (
    """
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
submit_timeout = "{submit_timeout}"
job_id = "id"
error = "error"
progress = "progress"
outputs = "outputs[].url"
thumbnails = "thumbnail_url"
max_concurrent = {cap}
timeout = "{timeout}"
grace = "{grace}"
{more}
[backends.video.submit]
url = "{{base_url}}/jobs"
headers = {{ X-Run = "{{run_id}}" }}
json = {{ prompt = "{{prompt}}" }}
[backends.video.poll]
url = "{{base_url}}/jobs/{{job_id}}"
status = "status"
timeout = "20s"
initial = "{initial}"
max = "{initial}"
"""
    + WORDS
)


def configure(
    fleet: Fleet,
    remote: Remote,
    more: str = "",
    cap: int = 4,
    timeout: str = "1h",
    initial: str = "20ms",
    submit_timeout: str = "20s",
    grace: str = "1s",
) -> None:
    given = {"cap": cap, "timeout": timeout, "more": more, "initial": initial, "submit_timeout": submit_timeout}
    given["grace"] = grace
    fleet.configure(CONFIG.format(url=remote.url, **given))


def watch(fleet: Fleet) -> None:
    fleet.run("watch", "--role", "goal", "--once")


def watched(fleet: Fleet) -> Any:
    """The task after a watcher has looked once more."""
    watch(fleet)
    return the_task(fleet)


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


def polled_by_nobody(fleet: Fleet, remote: Remote, count: int = 1, polls: int = 1_000_000) -> None:
    """Jobs at the provider, whose watcher was killed when it had recorded the id of the last, before it did more."""
    remote.goes(Course(polls=polls))
    add(fleet, count)
    watcher = Stepped(lambda: watch_here(fleet), count, signal.SIGKILL, after("Recorder._job"))
    assert os.WTERMSIG(watcher.wait()) == signal.SIGKILL
    assert len(submitted(fleet)) == count


def watch_here(fleet: Fleet) -> None:
    """In a process of its own."""
    os.environ.update(fleet.environment)
    with fleet.center() as center:
        Watcher(center, center.config.roles["goal"]).run()


def submitted(fleet: Fleet) -> list[Run]:
    with fleet.center() as center:
        return [run for run in center.ledger.open_runs() if run.provider_job_id is not None]
