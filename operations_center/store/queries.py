"""Named SQL out of ``.sql`` files.

-- name: open_runs
-- Every run that holds its task, oldest first.
SELECT …
"""

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def load_queries(file: Path) -> dict[str, str]:
    """Statements by name. Raises KeyError at use, not here, for a name that the file does not have."""
    parts = _NAME.split(file.read_text("utf-8"))
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}
