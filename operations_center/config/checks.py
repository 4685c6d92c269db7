"""What a configuration must hold beyond the type of each value."""

from collections.abc import Mapping
from typing import Any

from operations_center.config.backends import BACKEND_KINDS
from operations_center.config.placeholders import WORDS, placeholders_in, word_of
from operations_center.config.reading import Reading
from operations_center.config.sections import SETTLED_STATES, SUCCESS_STATES, Board, Center, Role
from operations_center.config.wording import Key, spell_nearest, spell_value
from operations_center.model import TaskState


def check_ledger(center: Center, reading: Reading) -> None:
    engine = center.ledger.split("://", maxsplit=1)[0]
    _check_available(("center", "ledger"), engine, "sqlite", reading)


def check_board(board: Board, reading: Reading) -> None:
    _check_available(("board", "kind"), board.kind, "local", reading)


def check_backend_kind(name: str, kind: str | None, reading: Reading) -> None:
    key = ("backends", name, "kind")
    if kind is not None and kind not in BACKEND_KINDS and reading.is_right(key):
        available = " or ".join(f'"{each}"' for each in BACKEND_KINDS)
        reading.report(key, f"{kind[:60]} is not available in this version; use {available}")


def check_argv(name: str, argv: tuple[str, ...] | None, reading: Reading) -> None:
    """Report what looks like a placeholder and is none: the program would get it as it stands there."""
    for place, word in enumerate(argv or ()):
        problem = _problem_of_word(word)
        if place == 0 and word_of(word) in WORDS:
            problem = "got a placeholder (give the program itself)"
        if problem:
            reading.report(("backends", name, f"argv[{place}]"), problem)


def _problem_of_word(word: str) -> str | None:
    whole = word_of(word)
    if whole in (*WORDS, "release"):
        return None
    if whole in ("prompt", "body"):
        return f"nothing replaces {{{whole}}} (a command reads the prompt on stdin, or in the file {{prompt_file}})"
    if whole is not None:
        known = ", ".join(f"{{{each}}}" for each in (*WORDS, "release"))
        return f"nothing replaces {{{whole[:60]}}} (known are {known}; write {{{{{whole[:60]}}}}} for the word itself)"
    # In a script braces mean what its language makes of them.
    inside = set() if " " in word or "\n" in word else placeholders_in(word) & {*WORDS, "prompt", "body"}
    if inside:
        names = ", ".join(f"{{{each}}}" for each in sorted(inside))
        return f"nothing replaces {names} inside of a word (give it a word of its own)"
    return None


def check_roles(roles: Mapping[str, Role], backends: Mapping[str, Any], reading: Reading) -> None:
    """That each role's backend is there, and that each kind is taken once."""
    if not roles and reading.is_right(("roles",)):
        reading.report(("roles",), 'there is none (add one, such as [roles.goal] with backend = "NAME")')
    _check_task_kinds(roles, reading)
    for role in roles.values():
        _check_backend(role, backends, reading)
        _check_ending(role, "on_success", reading)
        _check_ending(role, "on_failure", reading)


def _check_available(key: Key, given: str, available: str, reading: Reading) -> None:
    if given != available and reading.is_right(key):
        reading.report(key, f'{given[:60]} is not available in this version; use "{available}"')


def _check_task_kinds(roles: Mapping[str, Role], reading: Reading) -> None:
    taken: dict[str, str] = {}
    for role in roles.values():
        for kind in role.task_kinds:
            other = taken.setdefault(kind, role.name)
            if other != role.name:
                reading.report(
                    ("roles", role.name, "task_kinds"),
                    f"{spell_value(kind)} is taken by the role {other} already (give each kind to one role)",
                )


def _check_backend(role: Role, backends: Mapping[str, Any], reading: Reading) -> None:
    key = ("roles", role.name, "backend")
    if reading.is_right(key) and role.backend not in backends:
        advice = spell_nearest(role.backend, backends) if backends else f"add [backends.{role.backend}]"
        reading.report(key, f"no backend is named {spell_value(role.backend)} ({advice})")


def _check_ending(role: Role, ending: str, reading: Reading) -> None:
    key = ("roles", role.name, ending)
    then = getattr(role, ending)
    allowed = SUCCESS_STATES if ending == "on_success" else SETTLED_STATES
    if ending == "on_success" and then.state is TaskState.READY:
        advice = 'a task that succeeded would run again for ever; give "done" or "review"'
        reading.report((*key, "state"), f'got "ready" ({advice})')
    elif then.state not in allowed:
        reading.report((*key, "state"), f'got "{then.state}" (give one of {", ".join(allowed)})')
