"""What the settings of a provider must hold beyond the type of each value."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from operations_center.config.http_job import JOB_STATES, HttpJobSettings
from operations_center.config.placeholders import ORDER, PLACEHOLDERS, fill, placeholders_in
from operations_center.config.reading import Reading
from operations_center.config.wording import Key, spell_nearest, spell_value

NUMBERS = ("run_id", "task_id", "attempt", "fence")
"""What is known of a run and is not text of a task: it may stand in a header or in an id."""

_HERE = {
    "own_id": NUMBERS,
    "submit.url": ("base_url", "job_id", *ORDER),
    "submit.json": ("job_id", *ORDER),
    "submit.headers": ("secret", "job_id", *NUMBERS),
    "poll.url": ("base_url", "job_id"),
    "result.url": ("base_url", "job_id"),
    "cancel.url": ("base_url", "job_id"),
}
"""Which placeholders may stand where. The secret goes into headers only: URLs and bodies are logged by everybody."""

_EXPRESSIONS = ("job_id", "failure", "error", "progress", "outputs", "thumbnails")


def check_http_job(settings: HttpJobSettings, name: str, reading: Reading) -> None:
    check = _Check(settings, ("backends", name), reading)
    check.placeholders()
    check.urls()
    check.expressions()
    check.words()
    check.body()
    check.secret()
    check.ways()


class _Check:
    """One pass over settings of which some may be missing; a key that is wrong already is not judged again."""

    def __init__(self, settings: HttpJobSettings, key: Key, reading: Reading) -> None:
        self._settings = settings
        self._key = key
        self._reading = reading

    def placeholders(self) -> None:
        for key, template in self._templates():
            if self._is_right(key):
                for problem in _misplaced(template, _HERE[".".join(key[:2])]):
                    self._reading.report((*self._key, *key), problem)
        used = set().union(*(placeholders_in(template) for _, template in self._templates()))
        if "base_url" in used and self._settings.base_url is None:
            self._report(("base_url",), "it is missing (give the URL that {base_url} stands for)")

    def urls(self) -> None:
        base_url = self._settings.base_url
        if base_url is not None:
            self._url(("base_url",), base_url)
            for name in sorted(placeholders_in(base_url)):
                self._report(("base_url",), f"{{{name}}} cannot stand here (it is no template)")
        for key, template in self._templates():
            if key[-1] == "url":
                self._url(key, fill(template, {"base_url": self._settings.base_url or "http://base"} | _NOTHING))

    def expressions(self) -> None:
        for key, expression in self._expressions():
            problem = _problem_of(expression)
            if problem is not None:
                self._report(key, f"{spell_value(expression)} is not JMESPath: {problem} (see jmespath.org)")

    def words(self) -> None:
        if not self._is_right(("status",)) or self._settings.status is None:
            return
        for word, state in self._settings.status.items():
            if state not in JOB_STATES:
                self._report(("status", word), f"got {spell_value(state)} ({spell_nearest(state, JOB_STATES)})")
        if "succeeded" not in self._settings.status.values():
            self._report(("status",), 'no word means "succeeded" (add the provider\'s word for it)')

    def body(self) -> None:
        try:
            json.dumps(self._submit("json"), allow_nan=False)
        except (TypeError, ValueError):
            self._report(("submit", "json"), "it holds what JSON cannot (give strings, numbers, tables and lists)")

    def secret(self) -> None:
        settings = self._settings
        if settings.secret_env is not None and settings.secret_file is not None:
            self._report(("secret_file",), "there is a secret_env already (give one of the two)")
        named = settings.secret_env is not None or settings.secret_file is not None
        used = "secret" in placeholders_in(self._submit("headers"))
        if used and not named:
            self._report(("secret_env",), "it is missing (name the variable that {secret} stands for)")
        if named and not used and self._is_right(("submit",)):
            which = "secret_file" if settings.secret_env is None else "secret_env"
            self._report((which,), 'no header holds {secret} (add one, such as Authorization = "Bearer {secret}")')

    def ways(self) -> None:
        """That there is a way to each thing that must be found."""
        settings = self._settings
        if settings.own_id is not None:
            if "run_id" not in placeholders_in(settings.own_id):
                self._report(("own_id",), "it is the same for several runs (put {run_id} into it)")
            if not any("job_id" in placeholders_in(self._submit(part)) for part in ("url", "headers", "json")):
                self._report(("own_id",), "it is submitted nowhere (put {job_id} into submit)")
            if getattr(settings.poll, "url", None) is None:
                self._report(("poll", "url"), "it is missing (with own_id a job is looked up by it)")
        elif settings.job_id is None:
            self._report(("job_id",), "it is missing (say where the answer holds the id, or give own_id)")
        elif any("job_id" in placeholders_in(self._submit(part)) for part in ("url", "headers", "json")):
            self._report(("submit",), "{job_id} is not known before the answer (give own_id)")
        for part, url in (("poll", "status"), ("result", "result"), ("cancel", "cancel")):
            asked = getattr(settings, part)
            if asked is not None and asked.url is None and getattr(settings.urls, url) is None:
                self._report((part, "url"), f"it is missing (give it, or urls.{url})")
            if asked is not None and asked.url is not None and "job_id" not in placeholders_in(asked.url):
                self._report((part, "url"), "it is the same for all jobs (put {job_id} into it)")

    def _templates(self) -> Iterator[tuple[Key, Any]]:
        settings = self._settings
        if settings.own_id is not None:
            yield ("own_id",), settings.own_id
        for part in ("submit", "poll", "result", "cancel"):
            url = getattr(getattr(settings, part), "url", None)
            if url is not None:
                yield (part, "url"), url
        for header, value in (self._submit("headers") or {}).items():
            yield ("submit", "headers", header), value
        yield ("submit", "json"), self._submit("json")

    def _expressions(self) -> Iterator[tuple[Key, str]]:
        settings = self._settings
        found: list[tuple[Key, str | None]] = [((name,), getattr(settings, name)) for name in _EXPRESSIONS]
        found += [(("urls", name), getattr(settings.urls, name)) for name in ("status", "result", "cancel")]
        found.append((("poll", "status"), getattr(settings.poll, "status", None)))
        yield from ((key, expression) for key, expression in found if expression is not None)

    def _submit(self, part: str) -> Any:
        return getattr(self._settings.submit, part, None)

    def _url(self, key: Key, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or "{" in url.split("/")[2]:
            self._report(key, "it names no host of its own (write the host out)")
        elif "@" in parts.netloc:
            self._report(key, "it holds a user (name the secret by secret_env, and put {secret} into a header)")

    def _is_right(self, key: Key) -> bool:
        return self._reading.is_right((*self._key, *key))

    def _report(self, key: Key, problem: str) -> None:
        if self._is_right(key):
            self._reading.report((*self._key, *key), problem)


_NOTHING = {name: f"{{{name}}}" for name in PLACEHOLDERS if name != "base_url"}


def _misplaced(template: Any, allowed: tuple[str, ...]) -> Iterator[str]:
    for found in sorted(placeholders_in(template) - set(allowed)):
        if found not in PLACEHOLDERS:
            advice = f"{spell_nearest(found, allowed)} or write {{{{{found}}}}} for the text itself"
            yield f"unknown placeholder {{{found}}} ({advice})"
        elif found == "secret":
            yield "{secret} cannot stand here (name it in a header of submit)"
        else:
            known = ", ".join(f"{{{name}}}" for name in allowed)
            yield f"{{{found}}} cannot stand here (known are {known})"


def _problem_of(expression: str) -> str | None:
    import jmespath  # noqa: PLC0415 - only a configuration with such a backend pays for it
    from jmespath.exceptions import JMESPathError  # noqa: PLC0415
    from jmespath.functions import Functions  # noqa: PLC0415

    try:
        called = set(_functions_in(jmespath.compile(expression).parsed))
    except JMESPathError as error:
        return str(error).partition("\n")[0].removesuffix(":").removesuffix(", for expression")
    except RecursionError:
        return "it is nested too deeply"
    unknown = sorted(called - set(Functions.FUNCTION_TABLE))
    return f"there is no function {unknown[0]}" if unknown else None


def _functions_in(node: Any) -> Iterator[str]:
    """Of JMESPath's syntax tree: whether a function exists is not asked before it is called."""
    if node["type"] == "function_expression":
        yield node["value"]
    for child in node["children"]:
        if isinstance(child, dict):
            yield from _functions_in(child)
