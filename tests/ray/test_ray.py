"""The preset for Ray with Ray itself: a fleet's tasks are jobs of a real cluster, once each, whoever is killed.

Only scripts/test-ray runs these tests: it starts the cluster, and says where it is.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from subprocess import TimeoutExpired

import pytest

from operations_center.boards.local import NewTask
from operations_center.model import Event, Outcome, Proof, Run, RunState, Task, TaskState
from tests.fleet import PATIENCE_S, Fleet, wait_until
from tests.ray.cluster import ADDRESS, Cluster
from tests.ray.relay import Kept, Relay, relay_to

pytestmark = pytest.mark.ray

CONFIG = """
[center]
cgroup = "off"
[roles.goal]
backend = "cluster"
poll_interval = "10s"
[backends.cluster]
kind = "http_job"
preset = "ray"
base_url = "{url}"
secret_env = "RAY_AUTH_TOKEN"
submit = {{ headers = {{ Authorization = "Bearer {{secret}}" }} }}
poll = {{ initial = "200ms", max = "500ms" }}
max_concurrent = 2
timeout = "10m"
"""


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    if ADDRESS not in os.environ:
        pytest.fail(f"{ADDRESS} does not say where a cluster is: scripts/test-ray starts one", pytrace=False)
    return Cluster()


@pytest.fixture
def relay(fleet: Fleet, cluster: Cluster) -> Iterator[Relay]:
    with relay_to(cluster) as relay:
        fleet.configure(CONFIG.format(url=relay.url))
        yield relay


@pytest.fixture
def mark() -> str:
    """By this word the test's jobs are known in a cluster that others use as well."""
    return uuid.uuid4().hex


def add(fleet: Fleet, command: str) -> None:
    with fleet.center() as center:
        center.board.add([NewTask(command, "goal")])


def prints(mark: str, meanwhile: str = "sleep 1") -> str:
    return f"echo begin-{mark}; {meanwhile}; echo end-{mark}"


def until_let_go(fleet: Fleet) -> str:
    """``fleet.let_go()`` reaches the jobs of a cluster on this machine, too."""
    return f"until [ -e '{fleet.root}/go' ]; do sleep 0.1; done"


def the_run(fleet: Fleet) -> Run:
    with fleet.center() as center:
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=10)
        return run


def the_task(fleet: Fleet) -> Task:
    with fleet.center() as center:
        (task,) = center.board.tasks()
        return task


def events(fleet: Fleet, kind: str) -> list[Event]:
    with fleet.center() as center:
        return [event for event in center.ledger.events() if event.kind == kind]


def is_submitted(fleet: Fleet) -> bool:
    return bool(events(fleet, "run.submitted"))


def is_closed(fleet: Fleet) -> bool:
    return bool(events(fleet, "run.closed"))


def words(cluster: Cluster, mark: str) -> list[str]:
    return [job["status"] for job in cluster.jobs(mark)]


def logs(fleet: Fleet) -> list[str]:
    """What the run's artifacts hold: the log of its job, in JSON."""
    found = (fleet.state.run(the_run(fleet).run_id) / "artifacts").iterdir()
    return [json.loads(path.read_bytes())["logs"] for path in found]


def assert_one_job_whose_log_was_fetched_once(fleet: Fleet, cluster: Cluster, relay: Relay, mark: str) -> None:
    run = the_run(fleet)
    (job,) = cluster.jobs(mark)
    assert (job["submission_id"], job["status"]) == (run.run_id, "SUCCEEDED")
    assert (run.state, run.outcome, run.proof) == (RunState.CLOSED, Outcome.SUCCEEDED, Proof.PROVIDER_ANSWERED)
    assert run.provider_job_id == run.run_id
    (log,) = logs(fleet)
    assert log.splitlines().count(f"begin-{mark}") == 1
    assert log.splitlines().count(f"end-{mark}") == 1
    assert relay.asked("GET", "/logs") == 1
    assert len(events(fleet, "run.settled")) == 1
    assert the_task(fleet).state is TaskState.DONE
    assert not fleet.broken_promises()


def test_a_task_is_a_job_under_our_id_and_its_log_is_the_artifact(
    fleet: Fleet, cluster: Cluster, relay: Relay, mark: str
) -> None:
    add(fleet, prints(mark))
    fleet.run("watch", "--role", "goal", "--once")
    assert_one_job_whose_log_was_fetched_once(fleet, cluster, relay, mark)
    assert relay.asked("POST", "/api/jobs/") == 1


def test_everything_is_killed_in_the_middle_of_a_job_and_the_result_is_fetched_once(
    fleet: Fleet, cluster: Cluster, relay: Relay, mark: str
) -> None:
    add(fleet, prints(mark, until_let_go(fleet)))
    fleet.up()
    wait_until(lambda: words(cluster, mark) == ["RUNNING"], "the job runs")
    kill_everything(fleet)
    assert the_run(fleet).state is RunState.RUNNING
    fleet.up()
    wait_until(lambda: events(fleet, "run.adopted"), "the adoption")
    fleet.let_go()
    wait_until(lambda: is_closed(fleet), "the run is closed")
    assert len(events(fleet, "run.adopted")) == 1
    assert relay.asked("POST", "/api/jobs/") == 1
    assert_one_job_whose_log_was_fetched_once(fleet, cluster, relay, mark)


def test_a_job_that_ends_while_nobody_lives_is_fetched_once(
    fleet: Fleet, cluster: Cluster, relay: Relay, mark: str
) -> None:
    add(fleet, prints(mark, until_let_go(fleet)))
    fleet.up()
    wait_until(lambda: is_submitted(fleet), "the submission")
    kill_everything(fleet)
    fleet.let_go()
    wait_until(lambda: words(cluster, mark) == ["SUCCEEDED"], "the job has ended")
    assert relay.asked("GET", "/logs") == 0
    fleet.up()
    wait_until(lambda: is_closed(fleet), "the run is closed")
    assert_one_job_whose_log_was_fetched_once(fleet, cluster, relay, mark)


def kill_everything(fleet: Fleet) -> None:
    """KILL to supervisor, fork server, watcher and watchdog; a job of Ray's is none of the fleet's processes."""
    fleet.clean_up()


# A watcher is killed around its submission.


@pytest.mark.parametrize("keep", [Relay.keep_next_submission, Relay.keep_answer_to_next_submission])
def test_a_submission_without_an_answer_becomes_one_job(
    fleet: Fleet, cluster: Cluster, relay: Relay, mark: str, keep: Callable[[Relay], Kept]
) -> None:
    kept = keep(relay)
    kill_the_submitter(fleet, kept, prints(mark))
    assert (the_run(fleet).state, the_run(fleet).provider_job_id) == (RunState.RUNNING, None)
    assert len(cluster.jobs(mark)) == (1 if kept.is_answer else 0)
    fleet.run("watch", "--role", "goal", "--once")
    # Whoever knows of a job by its id submits none.
    assert relay.asked("POST", "/api/jobs/") == (1 if kept.is_answer else 2)
    # What was lost on its way may arrive much later.
    assert (kept.let_go() == 200) is kept.is_answer
    assert_one_job_whose_log_was_fetched_once(fleet, cluster, relay, mark)


def test_a_submission_that_arrives_just_before_it_is_sent_again_is_found(
    fleet: Fleet, cluster: Cluster, relay: Relay, mark: str
) -> None:
    first = relay.keep_next_submission()
    kill_the_submitter(fleet, first, prints(mark))
    second = relay.keep_next_submission()
    watcher = fleet.popen("watch", "--role", "goal")
    assert second.arrived.wait(PATIENCE_S)
    assert not cluster.jobs(mark)
    assert first.let_go() == 200
    assert second.let_go() == 500
    wait_until(lambda: is_closed(fleet), "the run is closed")
    assert watcher.poll() is None
    assert_one_job_whose_log_was_fetched_once(fleet, cluster, relay, mark)


@pytest.mark.parametrize("delay_ms", [0, 1, 3, 10, 30])
def test_a_watcher_that_is_killed_about_when_its_submission_is_answered_leaves_one_job(
    fleet: Fleet, cluster: Cluster, relay: Relay, mark: str, delay_ms: int
) -> None:
    add(fleet, prints(mark, "true"))
    kept = relay.keep_answer_to_next_submission()
    watcher = fleet.popen("watch", "--role", "goal")
    assert kept.arrived.wait(PATIENCE_S)
    kept.let_go()
    with pytest.raises(TimeoutExpired):
        watcher.wait(delay_ms / 1000)
    watcher.kill()
    watcher.wait()
    fleet.run("watch", "--role", "goal", "--once")
    assert relay.asked("POST", "/api/jobs/") == 1
    assert_one_job_whose_log_was_fetched_once(fleet, cluster, relay, mark)


def kill_the_submitter(fleet: Fleet, kept: Kept, command: str) -> None:
    add(fleet, command)
    watcher = fleet.popen("watch", "--role", "goal")
    assert kept.arrived.wait(PATIENCE_S)
    watcher.kill()
    watcher.wait()


# Other ends


def test_a_job_that_fails_blocks_its_task_with_the_message_of_ray(
    fleet: Fleet, cluster: Cluster, relay: Relay, mark: str
) -> None:
    add(fleet, f"echo no-cat-{mark} >&2; exit 3")
    fleet.run("watch", "--role", "goal", "--once")
    (job,) = cluster.jobs(mark)
    assert job["status"] == "FAILED"
    assert the_run(fleet).outcome is Outcome.FAILED
    task = the_task(fleet)
    assert task.state is TaskState.BLOCKED
    said = " ".join(job["message"].split())
    assert said.startswith("Job entrypoint command failed with exit code 3")
    assert said[:200] in (task.reason or "")


def test_a_stop_stops_the_job_and_blocks_its_task(fleet: Fleet, cluster: Cluster, relay: Relay, mark: str) -> None:
    add(fleet, prints(mark, until_let_go(fleet)))
    fleet.popen("watch", "--role", "goal")
    wait_until(lambda: words(cluster, mark) == ["RUNNING"], "the job runs")
    fleet.run("stop", the_run(fleet).run_id, "--reason", "too dear")
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.STOPPED, TaskState.BLOCKED)
    assert words(cluster, mark) == ["STOPPED"]
