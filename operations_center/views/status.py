"""The state of everything at a glance: what ``status`` shows. Read first, then shaped without reading more."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from operations_center.clock import Now, SystemClock, rfc3339
from operations_center.config import Config
from operations_center.fleet import Member, called, children_of, look_at, survivors
from operations_center.in_flight_reconcile import Executing, Trigger, look_for_executors
from operations_center.ledger import Pause
from operations_center.model import Health, Run, RunState
from operations_center.presentation import run_as_json
from operations_center.providers.health import breaker_of, cools_down_until
from operations_center.pulse import Milliseconds
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import Release, ReleaseState
from operations_center.running import FileFacts, config_as_json, difference_in_words, file_facts
from operations_center.state_directory import SUPERVISOR, WATCHDOG, StateDirectory
from operations_center.wiring import Center


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that was read. ``watchers``: one for each role, and survivors of roles that are gone.

    ``ledger_error``: why the ledger could not be read; then what it would tell is empty, and shown as null.
    ``obstacle``: why the state directory cannot be written; ``obstacle_to_logs``: why only the logs cannot.
    ``last_release``: the one that changed last. ``file``: how the configuration's file differs from what is run.
    """

    config: Config
    now: Now
    supervisor: Member
    watchdog: Member
    watchers: Sequence[Member]
    open_runs: Sequence[Run] = ()
    executing: Executing = field(default_factory=Executing)
    slots_held: Mapping[str, int] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    pauses: Sequence[Pause] = ()
    tasks: Mapping[str, int] = field(default_factory=dict)
    reconciles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ledger_error: str | None = None
    obstacle: str | None = None
    obstacle_to_logs: str | None = None
    file: FileFacts = field(default_factory=FileFacts)
    deployment: Deployment | None = None
    last_release: Release | None = None


def read_status(center: Center) -> Seen:
    """Raises OperationsCenterError when the ledger cannot be read."""
    ledger, members, pulls = center.ledger, read_members(center.config), center.config.code_pull is not None
    with ledger.snapshot():
        return replace(
            members,
            obstacle=center.obstacle,
            obstacle_to_logs=None if center.obstacle else center.state.obstacle_to_logs(),
            deployment=center.deployments.read() if pulls else None,
            last_release=next(iter(center.releases.all()), None) if pulls else None,
            open_runs=ledger.open_runs(),
            executing=look_for_executors(center.surroundings),
            slots_held=ledger.slots_held(),
            health=ledger.health(),
            pauses=ledger.pauses(),
            tasks=center.board.counts(),
            reconciles=ledger.reconciles(),
        )


def read_members(config: Config) -> Seen:
    """Who lives: that much can be told where there is no ledger to read."""
    # Before the heartbeats: what stands still in between is no silence of theirs.
    now, state = SystemClock().now(), StateDirectory(config.center.state_dir)
    supervisor = look_at(state, SUPERVISOR)
    alive = {member.name: member for member in survivors(state)}
    watchdog = alive.pop(WATCHDOG, Member(WATCHDOG))
    roles = [alive.pop(role, Member(role)) for role in config.roles]
    file = file_facts(config, os.environ)
    return Seen(config, now, supervisor, watchdog, [*roles, *alive.values()], file=file)


def describe(seen: Seen) -> dict[str, Any]:
    """The document of ``status --json``."""
    watchers = [_watcher(seen, member) for member in seen.watchers]
    watchdog = _watchdog(seen)
    problems = _problems(seen, watchers, watchdog)
    return {
        "state": _state(seen, problems),
        "supervisor": _supervisor(seen.supervisor),
        "watchers": watchers,
        "watchdog": watchdog,
        "web": {"url": None, "active": False},
        "deployment": _deployment(seen),
        "backends": _backends(seen),
        "board": _board(seen),
        "reconcile": {trigger: {**report, "at": rfc3339(report["at"])} for trigger, report in seen.reconciles.items()},
        "config_file": str(seen.config.file),
        "config": config_as_json(seen.config, seen.file),
        "runs": [run_as_json(run) for run in seen.open_runs],
        "executors": None if seen.ledger_error else seen.executing.count,
        "pauses": [_pause(pause) for pause in seen.pauses],
        "problems": problems,
        "ledger_error": seen.ledger_error,
    }


def _state(seen: Seen, problems: Sequence[str]) -> str:
    if seen.supervisor.process is None:
        return "stopped"
    return "degraded" if problems else "up"


def _supervisor(supervisor: Member) -> dict[str, Any] | None:
    if supervisor.process is None:
        return None
    pulse = supervisor.pulse
    return {
        "pid": supervisor.pid,
        "state": supervisor.state,
        "release": pulse.release if pulse else None,
        "started_at": rfc3339(pulse.started_at) if pulse else None,
    }


def _watcher(seen: Seen, member: Member) -> dict[str, Any]:
    child = children_of(seen.supervisor).get(member.name)
    pulse = member.pulse
    return {
        "role": member.name,
        "pid": member.pid,
        "state": _child_state(member, child),
        "restarts": child["restarts"] if child else 0,
        "started_at": rfc3339(pulse.started_at) if pulse else None,
        "heartbeat_at": rfc3339(pulse.heartbeat_at) if pulse else None,
        "progress_at": rfc3339(pulse.progress_at) if pulse else None,
        "release": pulse.release if pulse else None,
        "paused": any(pause.name in ("*", member.name) for pause in seen.pauses),
    }


def _watchdog(seen: Seen) -> dict[str, Any]:
    pulse = seen.watchdog.pulse
    last_at = pulse.detail("last_cycle_at", Milliseconds) if pulse else None
    # One that is gone may have left a report of its last cycle.
    reported = seen.reconciles.get(Trigger.WATCHDOG, {}).get("at") if pulse is None else None
    # By the clock that nobody sets.
    last_mono = pulse.detail("last_cycle_mono", Milliseconds) if pulse else None
    return {
        "pid": seen.watchdog.pid,
        "state": _child_state(seen.watchdog, children_of(seen.supervisor).get(WATCHDOG)),
        "release": pulse.release if pulse else None,
        "last_cycle_at": rfc3339(last_at or reported),
        "last_cycle_age_s": None if last_mono is None else max(0.0, (seen.now.monotonic - last_mono) / 1000),
    }


def _child_state(member: Member, child: Mapping[str, Any] | None) -> str:
    if member.process is not None:
        return "stopped" if member.state == "stopping" else member.state
    if child is None:
        return "stopped"
    # The supervisor has not noticed yet, or is about to start it again.
    return str(child["state"]) if child["state"] in ("backoff", "failed", "stopped") else "starting"


def _deployment(seen: Seen) -> dict[str, Any] | None:
    deployment = seen.deployment
    if deployment is None:
        return None
    return {
        "release": deployment.current.commit,
        "target": deployment.target.commit if deployment.target else None,
        "step": deployment.step,
        "reason": deployment.reason,
        "bad": _bad(seen.last_release),
        "pull_problem": seen.supervisor.pulse.detail("pull_problem", str) if seen.supervisor.pulse else None,
    }


def _bad(last: Release | None) -> dict[str, Any] | None:
    """Of interest until a later release works."""
    if last is None or last.state is not ReleaseState.BAD:
        return None
    return {"commit": last.commit, "reason": last.reason, "at": rfc3339(last.at)}


def _backends(seen: Seen) -> list[dict[str, Any]]:
    removed = [name for name in seen.slots_held if name not in seen.config.backends]
    return [_backend(seen, name) for name in (*seen.config.backends, *removed)]


def _backend(seen: Seen, name: str) -> dict[str, Any]:
    settings, health = seen.config.backends.get(name), seen.health.get(name)
    reasons = [pause.reason for pause in seen.pauses if pause.name in ("*", name)]
    return {
        "name": name,
        "max_concurrent": settings.max_concurrent if settings else None,
        "held": None if seen.ledger_error else seen.slots_held.get(name, 0),
        "cooldown_until": rfc3339(cools_down_until(health, seen.now.wall)),
        "breaker": breaker_of(health, seen.now.wall),
        "breaker_until": rfc3339(health.broken_until) if health else None,
        "breaker_reason": health.reason if health and health.broken_until else None,
        "paused": bool(reasons),
        "pause_reason": "; ".join(reasons) or None,
    }


def _board(seen: Seen) -> dict[str, Any]:
    if seen.ledger_error:
        return {"tasks": None, "outbox": None}
    return {"tasks": dict(seen.tasks), "outbox": sum(run.state is RunState.SETTLING for run in seen.open_runs)}


def _pause(pause: Pause) -> dict[str, Any]:
    return {"name": pause.name, "source": pause.source, "reason": pause.reason, "since": rfc3339(pause.since)}


def _problems(seen: Seen, watchers: Sequence[Mapping[str, Any]], watchdog: Mapping[str, Any]) -> list[str]:
    unusable = [
        *([seen.ledger_error] if seen.ledger_error else []),
        *([f"the state directory can only be read: {seen.obstacle}"] if seen.obstacle else []),
        *([seen.obstacle_to_logs] if seen.obstacle_to_logs else []),
    ]
    if seen.supervisor.process is None:
        living = [member for member in (*seen.watchers, seen.watchdog) if member.process is not None]
        unsupervised = [f"{called(each.name)} (process {each.pid}) runs without a supervisor" for each in living]
        return [*unusable, *(unsupervised or _left_alone(seen))]
    states = {str(watcher["role"]): str(watcher["state"]) for watcher in watchers} | {WATCHDOG: str(watchdog["state"])}
    wanted = children_of(seen.supervisor)
    return [
        *unusable,
        *_unsettled(seen.supervisor, wanted),
        *(_not_ready(seen, name, state) for name, state in states.items() if name in wanted and state != "ready"),
        *(_unsupervised(seen, name) for name in _unwatched(seen, wanted)),
        *_stalled(seen),
        *_late_cycle(seen, watchdog),
        *_going_back(seen.deployment),
        *_mixed(seen),
        *_problems_of_file(seen),
        *_broken(seen),
        *(f"{pause.name} is paused by the watchdog: {pause.reason}" for pause in seen.pauses if _is_alarm(pause)),
    ]


def _broken(seen: Seen) -> list[str]:
    """Backends that are left alone, or that one run tries."""
    found = []
    for name, health in seen.health.items():
        state, why = breaker_of(health, seen.now.wall), health.reason or "its last requests have failed"
        if name in seen.config.backends and state != "closed":
            how = f"is not used until {rfc3339(health.broken_until)}" if state == "open" else "is tried again"
            found.append(f"backend {name} {how}: {why}; see `operations-center runs --backend {name}`")
    return found


def _left_alone(seen: Seen) -> list[str]:
    """Name executors that nobody watches: no process of the fleet lives."""
    alive, unknown = seen.executing.count, len(seen.executing.unknown)
    words = "1 executor runs" if alive == 1 else f"{alive} executors run"
    return [
        *([f"{words} on without a fleet: the next `up` looks after what runs, `down --now` ends it"] if alive else []),
        *([f"whether {unknown} more run(s) still execute is unknown"] if unknown else []),
    ]


def _not_ready(seen: Seen, name: str, state: str) -> str:
    log = StateDirectory(seen.config.center.state_dir).log(name)
    return f"{called(name)} is {state}" + (f", see {log}" if state in ("backoff", "failed") else "")


def _unsettled(supervisor: Member, wanted: Mapping[str, Any]) -> list[str]:
    """A supervisor that starts or stops; where it has children it is they that say whether it is up."""
    going_down = supervisor.state in ("stopping", "stopped")
    return [f"the supervisor is {supervisor.state}"] if going_down or not wanted else []


def _unwatched(seen: Seen, wanted: Mapping[str, Any]) -> list[str]:
    """Survivors that this supervisor does not know: it neither restarts nor stops them."""
    return [member.name for member in seen.watchers if member.process is not None and member.name not in wanted]


def _unsupervised(seen: Seen, name: str) -> str:
    if name in seen.config.roles:
        return f"{called(name)} is not one of this supervisor's; `operations-center down` ends it"
    return f"{called(name)} ends with its runs: the configuration has no such role any more"


def _problems_of_file(seen: Seen) -> list[str]:
    """A fleet goes on with what it has; the next one could not start, or would not find this one's state."""
    difference = difference_in_words(seen.config, seen.file)
    is_problem = seen.file.problem is not None or seen.file.state_dir is not None
    return [difference] if difference is not None and is_problem else []


def _stalled(seen: Seen) -> list[str]:
    limit = seen.config.watchdog.stalled_after_ms
    found = []
    for member in (seen.supervisor, *seen.watchers, seen.watchdog):
        silent_ms = seen.now.monotonic - member.pulse.heartbeat_mono if member.pulse else 0
        if silent_ms > limit:
            found.append(
                f"{called(member.name)} (process {member.pid}) is alive but has not turned for {silent_ms // 1000} s"
            )
    return found


def _late_cycle(seen: Seen, watchdog: Mapping[str, Any]) -> list[str]:
    age_s = watchdog["last_cycle_age_s"]
    limit_s = (seen.config.watchdog.every_ms + seen.config.watchdog.stalled_after_ms) / 1000
    return [f"the watchdog's last cycle was {age_s:.0f} s ago"] if age_s is not None and age_s > limit_s else []


def _going_back(deployment: Deployment | None) -> list[str]:
    if deployment is None or deployment.step is not Step.BACK:
        return []
    current, target = deployment.current, deployment.target
    is_same_file = target is not None and target.config == current.config
    named = _named(current._replace(config="") if is_same_file else current)
    return [f"the fleet is on its way back to {named}: {deployment.reason}"]


def _mixed(seen: Seen) -> list[str]:
    """Between rollouts every process is to run what is current; without code pulls that is what the supervisor runs."""
    pulse, deployment = seen.supervisor.pulse, seen.deployment
    if pulse is None or (deployment is not None and deployment.step is not None):
        return []
    current = deployment.current if deployment is not None else Version(pulse.release, pulse.config)
    wanted = {SUPERVISOR, *children_of(seen.supervisor)}
    return [
        f"{called(member.name)} runs {_named(Version(member.pulse.release, member.pulse.config))}, "
        f"and {_named(current)} is current"
        for member in (seen.supervisor, *seen.watchers, seen.watchdog)
        if member.name in wanted and member.pulse is not None and (member.pulse.release, member.pulse.config) != current
    ]


def _named(version: Version) -> str:
    code = f"release {version.commit}" if version.commit else "the installed code"
    return f"{code} with configuration {version.config.removesuffix('.toml')}" if version.config else code


def _is_alarm(pause: Pause) -> bool:
    return pause.source == "watchdog"
