"""The secret that a provider knows us by: read anew for each request, and kept out of everything that is kept."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from operations_center.config import HttpJobSettings
from operations_center.files import read_file
from operations_center.ownership import why_untrusted

HIDDEN = "***"

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
            text = self.environment.get(self.variable, "")
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
            text = text.replace(value, HIDDEN).replace(quote(value, safe=""), HIDDEN)
        return text


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
