"""Fill in placeholders: ``{name}`` in a provider's requests, and as a whole word of a command.

``{{name}}`` stands for the literal ``{name}``; any other brace stands for itself. What is filled in is not looked at
again, so a task cannot smuggle a placeholder in. Nothing is ever put into the text of JSON or of a shell's script.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ORDER = ("run_id", "task_id", "title", "body", "prompt", "attempt", "fence")
"""What is known when a job is submitted."""

PLACEHOLDERS = ("base_url", "secret", "job_id", *ORDER)

WORDS = ("prompt_file", "run_id", "task_id", "title")
"""What a whole word of a command may stand for. ``{release}`` is replaced inside of words, too."""

_PLACEHOLDER = re.compile(r"\{\{([a-z_]+)\}\}|\{([a-z_]+)\}")
_WORD = re.compile(r"\{\{([A-Za-z][\w.-]*)\}\}|\{([A-Za-z][\w.-]*)\}", re.ASCII)


def placeholders_in(template: Any) -> set[str]:
    """The names of all placeholders of a string, or of all strings of a JSON value."""
    return {name for text in _strings(template) for _, name in _PLACEHOLDER.findall(text) if name}


def fill(template: Any, values: Mapping[str, str], spell: Callable[[str], str] = str) -> Any:
    """The template with its placeholders filled in, each value spelled by ``spell``; keys stay as they are."""
    match template:
        case str():
            return _PLACEHOLDER.sub(lambda found: _filled(found, values, spell), template)
        case Mapping():
            return {key: fill(value, values, spell) for key, value in template.items()}
        case list() | tuple():
            return [fill(value, values, spell) for value in template]
        case _:
            return template


def fill_word(word: str, values: Mapping[str, str]) -> str:
    """Fill in a placeholder that is a whole word; any other word stays as it is."""
    found = _WORD.fullmatch(word)
    if found is None:
        return word
    literal, name = found.groups()
    return f"{{{literal}}}" if literal else values.get(name, word)


def word_of(word: str) -> str | None:
    """Return the name in a word that is a placeholder as a whole; None for any other word."""
    found = _WORD.fullmatch(word)
    return found[2] if found is not None else None


def _filled(found: re.Match[str], values: Mapping[str, str], spell: Callable[[str], str]) -> str:
    literal, name = found.groups()
    if literal:
        return f"{{{literal}}}"
    # A URL's beginning is a URL itself.
    return values[name] if name == "base_url" else spell(values[name])


def _strings(template: Any) -> Iterator[str]:
    match template:
        case str():
            yield template
        case Mapping():
            for value in template.values():
                yield from _strings(value)
        case list() | tuple():
            for value in template:
                yield from _strings(value)
