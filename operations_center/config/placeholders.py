"""Templates of a provider's requests: ``{name}`` inside of strings, filled in without ever putting text into JSON.

``{{name}}`` stands for the literal ``{name}``; any other brace stands for itself. What is filled in is not looked at
again, so a task cannot smuggle a placeholder in.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ORDER = ("run_id", "task_id", "title", "body", "prompt", "attempt", "fence")
"""What is known when a job is submitted."""

PLACEHOLDERS = ("base_url", "secret", "job_id", *ORDER)

_PLACEHOLDER = re.compile(r"\{\{([a-z_]+)\}\}|\{([a-z_]+)\}")


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
