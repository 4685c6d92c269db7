"""The state as the event log tells it, and that any row changed by hand is noticed."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from operations_center.ledger.fold import State, differences, fold
from operations_center.model import Event


def event(kind: str, *, run_id: str | None = None, task_id: str | None = None, **data: Any) -> Event:
    return Event(0, 0, kind, run_id, task_id, data)


LOG = [
    event("task.added", task_id="t1", task={"task_id": "t1", "state": "ready", "claimed_by": None}),
    event("run.reserved", run_id="r1", task_id="t1", run={"run_id": "r1", "state": "reserved", "holder": 1}),
    event("task.claimed", run_id="r1", task_id="t1", task={"state": "running", "claimed_by": "r1"}),
    event("run.started", run_id="r1", task_id="t1", run={"state": "running"}),
    event("run.lost_race", run_id="r1", task_id="t1", refused="run.settled", holder=1, state="running"),
    event("run.settled", run_id="r1", task_id="t1", run={"state": "settling", "holder": 2}, evidence="gone"),
    event("task.attempts", task_id="t1", attempts={"attempts": 1, "retries": 0, "not_before": None}),
    event("watcher.ready", role="goal"),
    event("pause.begun", pause={"name": "agent", "source": "person", "reason": "tea", "since": 5}),
    event("pause.begun", pause={"name": "*", "source": "watchdog", "reason": "disk", "since": 6}),
    event("pause.begun", pause={"name": "agent", "source": "person", "reason": "more tea", "since": 7}),
    event("pause.ended", pause={"name": "*", "source": "watchdog"}),
    event("release.staged", release={"commit": "c1", "state": "staged", "reason": None, "at": 8}),
    event("release.staged", release={"commit": "c2", "state": "staged", "reason": None, "at": 9}),
    event("release.bad", release={"commit": "c1", "state": "bad", "reason": "it hung", "at": 10}),
    event("release.forgotten", release={"commit": "c2"}),
]
PRESENT: State = {
    "run": {"r1": {"run_id": "r1", "state": "settling", "holder": 2}},
    "task": {"t1": {"task_id": "t1", "state": "running", "claimed_by": "r1"}},
    "attempts": {"t1": {"task_id": "t1", "attempts": 1, "retries": 0, "not_before": None}},
    "pause": {"agent/person": {"name": "agent", "source": "person", "reason": "more tea", "since": 5}},
    "release": {"c1": {"commit": "c1", "state": "bad", "reason": "it hung", "at": 10}},
}


def test_the_log_tells_the_present() -> None:
    assert fold(LOG) == PRESENT
    assert differences(fold(LOG), PRESENT) == []


def test_the_log_tells_every_past_moment_too() -> None:
    assert fold(LOG[:2])["task"]["t1"]["state"] == "ready"
    assert fold(LOG[:4])["run"]["r1"] == {"run_id": "r1", "state": "running", "holder": 1}
    assert set(fold(LOG[:11])["pause"]) == {"agent/person", "*/watchdog"}
    assert fold([]) == {"run": {}, "task": {}, "attempts": {}, "pause": {}, "release": {}}


def test_a_pause_that_begins_again_after_its_end_has_a_new_beginning() -> None:
    again = event("pause.begun", pause={"name": "*", "source": "watchdog", "reason": "disk", "since": 9})
    assert fold([*LOG, again])["pause"]["*/watchdog"]["since"] == 9


def test_the_end_of_a_pause_that_nobody_knows_changes_nothing() -> None:
    ended = event("pause.ended", pause={"name": "*", "source": "watchdog"})
    assert fold([*LOG, ended]) == PRESENT


def test_each_kind_of_difference_is_one_line() -> None:
    present = {
        "run": {"r1": PRESENT["run"]["r1"] | {"holder": 3}, "r2": {"run_id": "r2"}},
        "task": {},
        "attempts": PRESENT["attempts"],
        "pause": PRESENT["pause"],
    }
    assert differences(fold(LOG), present) == [
        "run r1: holder is 3, the log says 2",
        "run r2: in the table, but the log does not know it",
        "task t1: in the log, but not in the table",
    ]


VALUES = st.none() | st.integers(-5, 5) | st.text("ab", max_size=2)
COLUMNS = ("state", "holder", "reason")
ROWS = st.dictionaries(
    st.sampled_from(["r1", "r2", "r3"]), st.fixed_dictionaries(dict.fromkeys(COLUMNS, VALUES)), min_size=1
)


@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(COLUMNS), VALUES), max_size=20))
def test_the_fold_of_changes_is_the_table_that_they_make(changes: list[tuple[str, str, Any]]) -> None:
    table: dict[str, dict[str, Any]] = {}
    log = []
    for run_id, column, value in changes:
        table.setdefault(run_id, {})[column] = value
        log.append(event("run.changed", run_id=run_id, run={column: value}))
    assert fold(log)["run"] == table


@settings(max_examples=200)
@given(rows=ROWS, data=st.data())
def test_any_one_row_changed_by_hand_is_noticed_and_named(rows: dict[str, dict[str, Any]], data: st.DataObject) -> None:
    log = [event("run.reserved", run_id=run_id, run=row) for run_id, row in rows.items()]
    run_id = data.draw(st.sampled_from(sorted(rows)))
    column = data.draw(st.sampled_from(COLUMNS))
    value = data.draw(VALUES.filter(lambda value: value != rows[run_id][column]))
    present: State = {"run": rows | {run_id: rows[run_id] | {column: value}}, "task": {}, "attempts": {}, "pause": {}}

    (line,) = differences(fold(log), present)

    assert line == f"run {run_id}: {column} is {value!r}, the log says {rows[run_id][column]!r}"
