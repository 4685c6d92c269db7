"""The state as the event log tells it, and where the tables differ from it. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from operations_center.model import Event

State = dict[str, dict[str, dict[str, Any]]]
"""``{"run": {run_id: columns}, "task": {task_id: columns}, "attempts": {task_id: …}, "pause": {name/source: …},
"release": {commit: columns}}``"""


def fold(events: Iterable[Event]) -> State:
    state: State = {"run": {}, "task": {}, "attempts": {}, "pause": {}, "release": {}}
    for event in events:
        _apply(state, event)
    return state


def _apply(state: State, event: Event) -> None:
    if "run" in event.data and event.run_id:
        state["run"].setdefault(event.run_id, {}).update(event.data["run"])
    if "task" in event.data and event.task_id:
        state["task"].setdefault(event.task_id, {}).update(event.data["task"])
    if "attempts" in event.data and event.task_id:
        state["attempts"][event.task_id] = {"task_id": event.task_id, **event.data["attempts"]}
    if "pause" in event.data:
        pause = event.data["pause"]
        key = f"{pause['name']}/{pause['source']}"
        if event.kind == "pause.ended":
            state["pause"].pop(key, None)
        else:
            # A pause that only changed its reason keeps its beginning, in the table as here.
            since = state["pause"].get(key, pause)["since"]
            state["pause"][key] = {**pause, "since": since}
    if event.kind in ("release.staged", "release.good", "release.bad"):
        state["release"][event.data["release"]["commit"]] = event.data["release"]
    if event.kind == "release.forgotten":
        state["release"].pop(event.data["release"]["commit"], None)


def differences(folded: State, present: State) -> list[str]:
    """One line for each subject in which the log and the tables disagree."""
    return [
        line
        for subject, rows in present.items()
        for key in sorted({*rows, *folded[subject]})
        for line in _difference(subject, key, folded[subject].get(key), rows.get(key))
    ]


def _difference(
    subject: str, key: str, folded: Mapping[str, Any] | None, present: Mapping[str, Any] | None
) -> list[str]:
    if folded is None:
        return [f"{subject} {key}: in the table, but the log does not know it"]
    if present is None:
        return [f"{subject} {key}: in the log, but not in the table"]
    return [
        f"{subject} {key}: {column} is {present.get(column)!r}, the log says {folded.get(column)!r}"
        for column in sorted({*folded, *present})
        if folded.get(column) != present.get(column)
    ]
