"""What the soak says at its end: counts, and for each breach the events and deeds around it."""

import json
from collections.abc import Iterable
from typing import Any

from soak.breaches import Breach
from soak.journal import Journal
from soak.soak import Summary

AROUND_S = 5.0
MOST_LINES = 60


def summary_lines(summary: Summary) -> Iterable[str]:
    yield f"looks      {summary.looks}, {summary.compared} slots and trees compared both ways"
    yield f"tasks      {_counts(summary.tasks)}"
    yield f"runs       {_counts(summary.outcomes)}"
    yield f"admitted   {summary.events['run.reserved']}, adopted {summary.events['run.adopted']}, " + (
        f"late writers turned away {summary.events['run.lost_race']}"
    )
    for verb in ("kill", "stop", "re-exec"):
        counts = {key.partition(" ")[2]: n for key, n in summary.hits.items() if key.startswith(f"{verb} ")}
        yield f"{verb:<10} {sum(counts.values())}: {_counts(counts)}"
    if summary.longest_dead:
        yield f"longest    {summary.longest_dead_s:.2f} s was a slot held by a dead run ({summary.longest_dead})"
    yield f"breaches   {len(summary.breaches)}"


def explanation(breach: Breach, summary: Summary, journal: Journal) -> Iterable[str]:
    """The subject's own events, and what the storm did about that time or to that run."""
    yield f"{breach.promise}: {breach.text}"
    events = list(_events_of(breach, summary))
    for event in events[-MOST_LINES:]:
        yield f"    {event['at']}  {event['kind']}  {json.dumps(event['data'])[:300]}"
    for line in _deeds_about(breach, events, journal):
        rest = {key: value for key, value in line.items() if key not in ("at", "at_ns", "actor", "deed", "hit")}
        yield f"    {round(line['at'] * 1000)}  {line['actor']}: {line['deed']} {rest} {_hit(line)}"


def _events_of(breach: Breach, summary: Summary) -> Iterable[Any]:
    if summary.story is None:
        return
    runs = {run["run_id"] for run in summary.story.runs if breach.subject in (run["run_id"], run["task_id"])}
    for event in summary.story.events:
        if event["run_id"] in runs or event["task_id"] == breach.subject:
            yield event


def _deeds_about(breach: Breach, events: list[Any], journal: Journal) -> Iterable[Any]:
    begin = min((event["at"] / 1000 for event in events), default=None)
    end = max((event["at"] / 1000 for event in events), default=None)
    near = []
    for line in journal.lines():
        hit = any(breach.subject == each["run"] or breach.subject == str(each["pid"]) for each in line["hit"])
        about = breach.at_s and abs(line["at_ns"] / 1e9 - breach.at_s) < AROUND_S
        during = begin is not None and end is not None and begin - 1 <= line["at"] <= min(end, begin + 30) + 1
        if hit or about or during:
            near.append(line)
    return near[-MOST_LINES:]


def _hit(line: Any) -> str:
    return ", ".join(f"{each['kind']} {each['role'] or ''} {each['pid']} {each['run'] or ''}" for each in line["hit"])


def _counts(counts: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"
