"""The configuration that a new user starts with."""

import json
import os
from pathlib import Path
from typing import IO

from operations_center.config.discovery import FILE_NAME
from operations_center.errors import OperationsCenterError
from operations_center.text import on_one_line

DEFAULT_STATE_DIR = '".operations_center"'


def template_text(state_dir: Path | None = None) -> str:
    """Return the text of a new configuration whose state lies in ``state_dir``; None: beside it."""
    text = Path(__file__).with_name("template.toml").read_text(encoding="utf-8")
    # TOML's strings are JSON's, but for DEL, which it wants escaped.
    named = DEFAULT_STATE_DIR if state_dir is None else json.dumps(str(state_dir), ensure_ascii=False)
    return text.replace(DEFAULT_STATE_DIR, named.replace("\x7f", "\\u007f"))


def write_template(directory: Path, state_dir: Path | None = None) -> Path:
    """Write the template into ``directory``, made if need be; OperationsCenterError if it is there already."""
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # An empty one is what a killed `init` has left: it must not be in the way of the next.
        mode = "w" if _is_empty(path) else "x"
        with open(path, mode, encoding="utf-8", opener=_open_for_us) as file:
            _fill(file, path, template_text(state_dir))
    except FileExistsError:
        raise _cannot_write(path, "it exists already; edit it, or give another directory") from None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise _cannot_write(path, f"{problem}; give another directory") from None
    return path


def _open_for_us(path: str, flags: int) -> int:
    """One that others may write would not be obeyed."""
    return os.open(path, flags, 0o644)


def _fill(file: IO[str], path: Path, text: str) -> None:
    """A disk that is full half-way must leave nothing that looks like a configuration."""
    try:
        file.write(text)
        file.flush()
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return False


def _cannot_write(path: Path, problem: str) -> OperationsCenterError:
    return OperationsCenterError(on_one_line(f"cannot write {path}: {problem}"))
