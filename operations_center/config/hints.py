"""Name what a configuration may well say, and what its author may not have meant."""

import re
from collections import deque
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

from operations_center.config.placeholders import WORDS, placeholders_in
from operations_center.config.sections import CommandSettings, Config, Role

SHELLS = frozenset({"sh", "ash", "bash", "dash", "fish", "ksh", "zsh", "busybox"})

_VARIABLE = re.compile(r"\$(?:[A-Z_][A-Z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*\})")


class Hint(NamedTuple):
    """``about`` names the role or the backend, as ``doctor`` does."""

    about: str
    text: str


def hints(config: Config) -> list[Hint]:
    """Return what ``config check`` and ``doctor`` tell beside mistakes."""
    commands = [backend for backend in config.backends.values() if isinstance(backend, CommandSettings)]
    return [*(hint for backend in commands for hint in _of_argv(backend)), *_of_follow_ups(config)]


def _of_argv(backend: CommandSettings) -> Iterator[Hint]:
    about = f"backend {backend.name}"
    has_shell = any(PurePath(word).name in SHELLS for word in backend.argv)
    for place, word in enumerate(backend.argv):
        if not has_shell and (variable := _VARIABLE.search(word)):
            advice = 'no shell reads argv, so it is passed as it is; write ["sh", "-c", "…"] for one'
            yield Hint(about, f"argv[{place}] holds {variable[0]}: {advice}")
        if " " in word and (names := placeholders_in(word) & {*WORDS, "prompt", "body"}):
            advice = "nothing replaces it inside of a word; a script has $OPERATIONS_CENTER_TASK_ID and the like"
            yield Hint(about, f"argv[{place}] holds {{{min(names)}}}: {advice}")


def _of_follow_ups(config: Config) -> Iterator[Hint]:
    """Name a cycle through each follow-up that is part of one, each cycle once."""
    following = {role.name: _followers(role, config) for role in config.roles.values()}
    told: set[frozenset[tuple[str, str]]] = set()
    for first, followers in following.items():
        for then in followers:
            way = _shortest_way(following, then, first)
            steps = [first, *way]
            cycle = frozenset(zip(steps, way, strict=False))
            if way and cycle not in told:
                told.add(cycle)
                loop = " → ".join(steps)
                yield Hint(
                    f"role {first}", f"follow-ups in a loop: {loop}; each task makes another one, again and again"
                )


def _followers(role: Role, config: Config) -> list[str]:
    kinds = (then.follow_up for then in (role.on_success, role.on_failure) if then.follow_up is not None)
    roles = (config.role_for_kind(kind) for kind in kinds)
    return list(dict.fromkeys(role.name for role in roles if role is not None))


def _shortest_way(following: dict[str, list[str]], start: str, end: str) -> list[str]:
    """Return the roles from ``start`` to ``end``, both included; empty where there is no way."""
    ways = deque([[start]])
    seen = {start}
    while ways:
        way = ways.popleft()
        if way[-1] == end:
            return way
        for then in following[way[-1]]:
            if then not in seen:
                seen.add(then)
                ways.append([*way, then])
    return []
