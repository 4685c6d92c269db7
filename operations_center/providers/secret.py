"""The secret that a provider knows us by: read anew for each request, and kept out of everything that is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from operations_center.config import HttpJobSettings

HIDDEN = "***"


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
        return f"{self.variable} is not set" if self.variable is not None else f"{self.file} has no secret to read"

    def value(self) -> str | None:
        """None where it is not set, cannot be read, or cannot stand in a header; empty where none is needed."""
        if self.variable is not None:
            text = self.environment.get(self.variable, "")
        elif self.file is not None:
            try:
                text = self.file.read_text()
            except (OSError, ValueError):
                return None
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
