"""The shapes of the ids of which names of files are made: what has its shape is one name, and leads nowhere else.

Ids are read from a ledger, and a ledger may come from elsewhere. So nothing that is read there becomes a path, or part
of one, before it was checked here.
"""

import re

LARGEST_NUMBER = 2**52
"""No fence and no task's number is larger: as many can be handed out from here on before SQLite's integers end."""

RUN_ID = re.compile(r"r(0|[1-9][0-9]{0,15})-[0-9a-f]{6}")
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
CONFIG_COPY = re.compile(r"[0-9a-f]{16}\.toml")


def fence_of(run_id: str) -> int | None:
    """Return the fence that a run id begins with; None for what is no run id."""
    match = RUN_ID.fullmatch(run_id)
    fence = int(match[1]) if match else None
    return fence if fence is not None and fence <= LARGEST_NUMBER else None


def checked_run_id(text: str) -> str:
    """Return it. Raises ValueError for what is no run id."""
    if RUN_ID.fullmatch(text) is None:
        raise ValueError(f"{text!r:.80} is no run id")
    return text


def checked_commit(text: str) -> str:
    """Return it. Raises ValueError for what is no full commit id."""
    if COMMIT.fullmatch(text) is None:
        raise ValueError(f"{text!r:.80} is no commit id")
    return text


def checked_config_copy(text: str) -> str:
    """Return it. Raises ValueError for what is no name of a copy of the configuration."""
    if CONFIG_COPY.fullmatch(text) is None:
        raise ValueError(f"{text!r:.80} names no copy of the configuration")
    return text
