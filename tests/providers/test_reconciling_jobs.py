"""What `reconcile` reports of jobs that nobody polls, and of those of which it learned nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.model import Outcome, TaskState
from tests.fleet import Fleet
from tests.providers.jobs import configure, polled_by_nobody, submitted, the_run, the_task
from tests.providers.remote import Remote, provider_process

NOTHING_LEARNED = [{"forget": True}, {"status": 401}, {"status": 429}, {"status": 500}, {"vanish": True}]


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with provider_process(tmp_path / "provider") as remote:
        yield remote


@pytest.mark.parametrize("answer", NOTHING_LEARNED, ids=["404", "401", "429", "500", "no answer"])
def test_a_job_of_which_nothing_was_learned_is_suspect_and_no_action(
    fleet: Fleet, remote: Remote, answer: dict[str, Any]
) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    remote.rule("poll", **answer)
    run_id = the_run(fleet).run_id

    planned = fleet.json("reconcile", "--dry-run")
    assert (planned["verdicts"], planned["count"]) == ({"ask_provider": 1}, 1)
    assert planned["actions"][0]["action"] == "would_apply"

    report = fleet.json("reconcile")
    assert (report["verdicts"], report["actions"], report["count"]) == ({"suspect": 1}, [], 0)
    (asked,) = asked_about(fleet)
    assert (asked["trigger"], asked["decision"]) == ("cli", "unsure")
    (job,) = report["jobs"]
    assert (job["run_id"], job["trouble"], job["failures"], job["eligible"]) == (run_id, asked["said"], 1, False)
    assert job["next_ask_at"] is not None
    assert fleet.json("status", expect=3)["reconcile"]["cli"]["verdicts"] == {"suspect": 1}
    assert [run.run_id for run in submitted(fleet)] == [run_id]


def test_a_person_who_reconciles_is_told_of_which_job_nothing_was_learned_and_why(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    remote.rule("poll", status=500)
    told = fleet.run("reconcile").stdout
    (line,) = [line for line in told.splitlines() if line.startswith("suspect")]
    (asked,) = asked_about(fleet)
    assert the_run(fleet).run_id in line
    assert asked["said"] in line
    assert "1 suspect" in told


def test_what_the_watchdog_could_not_learn_is_suspect_in_the_status(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h", more='min_age = "0s"\nreconcile = "auto"')
    polled_by_nobody(fleet, remote)
    remote.rule("poll", status=500)
    fleet.run("watchdog", "--once")
    assert fleet.json("status", expect=3)["reconcile"]["watchdog"]["verdicts"] == {"suspect": 1}
    assert len(asked_about(fleet)) == 1


def test_a_job_that_is_to_stop_and_cannot_be_cancelled_is_suspect_and_is_asked_about_again(
    fleet: Fleet, remote: Remote
) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    remote.rule("cancel", status=500, times=1)
    with fleet.center() as center:
        center.board.cancel(the_task(fleet).task_id)
        report = clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
    run = the_run(fleet)
    assert (report.verdicts, report.actions, report.asked) == ((("suspect", 1),), (), [run.run_id])
    assert (run.outcome, run.stop_outcome) == (None, Outcome.CANCELLED)
    fleet.run("reconcile")
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.CANCELLED, TaskState.CANCELLED)


def test_one_pass_tells_apart_what_has_succeeded_failed_runs_on_and_is_not_known(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote, count=4, polls=1)
    ended, failed, running, forgotten = sorted(submitted(fleet), key=lambda run: run.run_id)
    remote.rule("poll", job=failed.provider_job_id, word="failed")
    remote.rule("poll", job=running.provider_job_id, word="running")
    remote.rule("poll", job=forgotten.provider_job_id, forget=True)

    report = fleet.json("reconcile", expect=0)

    assert (report["verdicts"], report["count"]) == ({"ask_provider": 3, "suspect": 1}, 3)
    assert {action["run_id"]: deed(action) for action in report["actions"]} == {
        ended.run_id: ("applied", "ASK_PROVIDER", "succeeded", None, None),
        failed.run_id: ("applied", "ASK_PROVIDER", "failed", None, None),
        running.run_id: ("applied", "ASK_PROVIDER", None, "running", None),
    }
    assert (report["scanned_count"], report["skipped"], report["invariant_violations"]) == (4, None, [])
    with fleet.center() as center:
        outcomes = {run.run_id: run.outcome for run in center.ledger.recent_runs(task_id=None, backend=None, limit=10)}
    assert outcomes == {
        ended.run_id: Outcome.SUCCEEDED,
        failed.run_id: Outcome.FAILED,
        running.run_id: None,
        forgotten.run_id: None,
    }
    troubles = {job["run_id"]: job["trouble"] is not None for job in report["jobs"]}
    assert troubles == {run_id: run_id == forgotten.run_id for run_id in outcomes}
    assert not fleet.broken_promises()


def deed(action: dict[str, Any]) -> tuple[str | None, ...]:
    return tuple(action[key] for key in ("action", "rule", "outcome", "said", "error"))


def asked_about(fleet: Fleet) -> list[dict[str, Any]]:
    with fleet.center() as center:
        return [event.data for event in center.ledger.events() if event.kind == "job.asked"]
