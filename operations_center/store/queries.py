"""Named SQL out of ``.sql`` files.

-- name: open_runs
-- Every run that holds its task, oldest first.
SELECT …
"""

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def load_queries(package: str, file: str) -> dict[str, str]:
    """Statements by name. Raises KeyError at use, not here, for a name that the file does not have."""
    text = files(package).joinpath(file).read_text("utf-8")
    parts = _NAME.split(text)
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}
