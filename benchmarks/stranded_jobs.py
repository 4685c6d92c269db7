"""A thousand jobs whose watcher is dead, at a provider that answers after 100 ms: asked, fetched and settled.

The runs are admitted as a watcher does it, and their jobs are at a real server, a process of its own, which takes
100 ms for each answer of its API. Timed is what `operations-center reconcile --limit 1000` calls, in a process that has
opened the ledger: for jobs that still run, which are asked for and adopted later; and for as many that are done, which
are asked for, their outputs of 100 kB downloaded, and their runs settled, told to the board and closed. The floor is
the answers alone, 32 at once. Counted by the server: how many requests were under way at once, and whether those that
were heard of longest ago were asked first; with `--limit 25`, that these and no others are asked.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.request import ProxyHandler, Request, build_opener

import msgspec

from benchmarks.figures import Options, Row, main
from benchmarks.fleets import directory
from benchmarks.records import dead_process
from operations_center.admission import Limits
from operations_center.boards.local import NewTask
from operations_center.identity import Process
from operations_center.in_flight_reconcile import Asking, Report, Trigger, clear_orphaned_in_flight
from operations_center.in_flight_reconcile.asking import AT_ONCE
from operations_center.keeper.launch import prepare_for_job
from operations_center.ledger import Admission
from operations_center.model import JobMemory, Run, RunState
from operations_center.presentation import task_as_json
from operations_center.wiring import Center
from tests.fleet import Fleet
from tests.providers import script
from tests.providers.remote import Remote, provider_process
from tests.providers.script import Course, Provider

JOBS = 1000
LIMIT = 25
LATENCY_S = 0.1
TARGET_S = 15.0
OUTPUT_SIZE = 100_000
LATER_MS = 1_000
"""Between the moments at which two jobs were last heard of: in this order they are to be asked."""

CONFIG = """
[center]
cgroup = "off"
[roles.goal]
backend = "video"
[backends.video]
kind = "http_job"
base_url = "{url}"
job_id = "id"
outputs = "outputs[].url"
max_concurrent = 10000
[backends.video.submit]
url = "{{base_url}}/jobs"
json = {{ prompt = "{{prompt}}" }}
[backends.video.poll]
url = "{{base_url}}/jobs/{{job_id}}"
status = "status"
[backends.video.status]
queued = "queued"
running = "running"
succeeded = "succeeded"
"""


def measure(options: Options) -> list[Row]:
    count, limit = (40, 5) if options.quick else (JOBS, LIMIT)
    with stranded(count, Course(polls=1_000_000)) as (center, remote, order):
        limited, asked = reconciled(center, remote, limit)
        assert {each.job for each in asked} == set(order[:limit])
        running, asked = reconciled(center, remote, count)
        assert len(asked) == count
        early = most_out_of_order([each.job or "" for each in asked], order[limit:] + order[:limit])
    with stranded(count, Course(polls=1, size=OUTPUT_SIZE)) as (center, remote, _):
        done, fetched = reconciled(center, remote, count)
        assert not center.ledger.open_runs()
        assert len(list(center.state.runs.glob("*/artifacts/output-1.mp4"))) == count
    floor = {"the answers alone": count / AT_ONCE * LATENCY_S}
    return [
        Row(f"{count:,} jobs that still run", "s", running, floor, TARGET_S),
        Row(f"{count:,} jobs that are done", "s", done, floor, TARGET_S),
        Row(f"{limit} of them, with a limit", "s", limited, {"the answers alone": LATENCY_S}),
        Row("requests at once", "", most_at_once(asked), {"of jobs that are done": most_at_once(fetched)}, AT_ONCE),
        Row("places that a job is asked out of its order", "", early, {}, AT_ONCE),
    ]


@contextmanager
def stranded(count: int, course: Course) -> Iterator[tuple[Center, Remote, list[str]]]:
    with directory() as root, provider_process(root / "provider") as remote:
        fleet = Fleet(root)
        fleet.configure(CONFIG.format(url=remote.url))
        with fleet.center() as center:
            remote.goes(course)
            yield center, remote, strand(center, remote, count)


def strand(center: Center, remote: Remote, count: int) -> list[str]:
    """Runs whose jobs nobody polls; the ids of these, longest not heard of first: the later ones admitted."""
    nobody = dead_process()
    center.board.add([NewTask(f"film {number}", "goal") for number in range(count)])
    runs = [admit(center, f"t{number}", nobody) for number in range(1, count + 1)]
    with ThreadPoolExecutor(8) as pool:
        job_ids = list(pool.map(lambda run: submit(remote, run), runs))
    now = center.clock.now().wall
    with center.ledger.transaction():
        for number, (run, job_id) in enumerate(zip(runs, job_ids, strict=True)):
            assert center.ledger.change_run(run, "run.submitted", provider_job_id=job_id)
            heard_at = now - 1_000_000 - number * LATER_MS
            center.ledger.remember_jobs({run.run_id: JobMemory(urls={}, heard_at=heard_at)})
    remote.is_now(Provider(latency=LATENCY_S))
    return job_ids[::-1]


def admit(center: Center, task_id: str, watcher: Process) -> Run:
    admission = Admission(
        task_id, "goal", "video", Limits(1_000_000), center.host, watcher, 1_000, 86_400_000, kind="http_job"
    )
    run = center.ledger.admit(admission)
    assert isinstance(run, Run)
    task = center.board.claim(task_id, run.run_id)
    assert task is not None
    prepare_for_job(center.state.run(run.run_id), msgspec.json.encode(task_as_json(task)))
    now = center.clock.now()
    begun = center.ledger.change_run(
        run,
        "run.submitting",
        state=RunState.RUNNING,
        submitting_at=now.wall,
        submitting_mono=now.monotonic,
        started_at=now.wall,
    )
    assert begun is not None
    return begun


def submit(remote: Remote, run: Run) -> str:
    request = Request(f"{remote.url}/jobs", msgspec.json.encode({"prompt": run.task_id}), method="POST")
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        return str(msgspec.json.decode(answer.read())["id"])


def reconciled(center: Center, remote: Remote, limit: int) -> tuple[float, list[script.Request]]:
    """Seconds, and what the server was asked meanwhile."""
    before = len(remote.requests())
    begun = time.perf_counter()
    report = reconcile(center, limit)
    took = time.perf_counter() - begun
    assert report.applied == limit, report.summary
    return took, remote.requests()[before:]


def reconcile(center: Center, limit: int) -> Report:
    asking = Asking(by_person=True, limit=limit)
    return clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI, asking=asking)


def most_at_once(asked: Sequence[script.Request]) -> int:
    """Of the API's answers, each of which takes LATENCY_S: how many had arrived, and could not be answered yet."""
    arrived = [each.at for each in asked if each.what == "poll"]
    return max(sum(at <= other < at + LATENCY_S for other in arrived) for at in arrived)


def most_out_of_order(asked: Sequence[str], wanted: Sequence[str]) -> int:
    """By how many places a job was asked earlier or later than it should have been, at most."""
    place = {job_id: number for number, job_id in enumerate(wanted)}
    return max(abs(place[job_id] - number) for number, job_id in enumerate(asked))


if __name__ == "__main__":
    main(measure)
