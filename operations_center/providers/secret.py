"""The secret that a provider knows us by: read anew for each request, and kept out of everything that is kept."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from operations_center.config import HttpJobSettings
from operations_center.environment import value_of
from operations_center.files import read_file
from operations_center.ownership import why_untrusted
from operations_center.text import HIDDEN, SHORTEST_SECRET

LARGEST_FILE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Secret:
    """``variable`` is the environment's, ``file`` may be exchanged at any time; neither: there is no secret.

    ``given`` are the values that were asked for: an answer to a request of before may still quote an old one.
    """

    variable: str | None
    file: Path | None
    environment: Mapping[str, str]
    given: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, settings: HttpJobSettings, environment: Mapping[str, str]) -> "Secret":
        return cls(settings.secret_env, settings.secret_file, environment)

    @property
    def obstacle(self) -> str:
        """What is in the way when there is no value."""
        if self.variable is not None:
            return f"{self.variable} is not set"
        problem = _distrust(self.file) if self.file is not None else None
        return f"{self.file} is not believed: {problem}" if problem else f"{self.file} has no secret to read"

    def value(self) -> str | None:
        """None where it is not set, cannot be read, or cannot stand in a header; empty where none is needed."""
        if self.variable is not None:
            text = value_of(self.variable, self.environment) or ""
        elif self.file is not None:
            text = _read(self.file)
        else:
            return ""
        secret = text.strip()
        if not (secret and secret.isascii() and secret.isprintable()):
            return None
        self.given.add(secret)
        return secret

    def hide(self, text: str) -> str:
        """The text with every mention of the secret replaced, as it is and as it was."""
        self.value()
        # The longest first: a new value may hold the old one. A copy, for other threads ask for values meanwhile.
        for value in sorted(self.given.copy(), key=len, reverse=True):
            text = _mention_of(value).sub(HIDDEN, text)
        return text

    def is_in(self, text: str) -> bool:
        """Whether a text mentions the secret. Of one that is as short as a word nobody can tell."""
        self.value()
        return any(_mention_of(value).search(text) for value in self.given.copy() if len(value) >= SHORTEST_SECRET)


@lru_cache(maxsize=16)
def _mention_of(value: str) -> re.Pattern[str]:
    """A secret as it is, or with any of its characters escaped as in a URL, once or several times over."""
    return re.compile("".join(f"(?:{re.escape(each)}|%(?:25)*(?i:{ord(each):02x}))" for each in value))


def _read(file: Path) -> str:
    """The text of a file that nobody else could have written, and empty for any other."""
    try:
        return "" if why_untrusted(file) else read_file(os.path.realpath(file), LARGEST_FILE).decode()
    except (OSError, ValueError):
        return ""


def _distrust(file: Path) -> str | None:
    try:
        return why_untrusted(file)
    except OSError:
        return None  # then there is nothing to read
