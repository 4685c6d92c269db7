"""The configuration that a new user starts with."""

from pathlib import Path
from typing import TextIO

from operations_center.config.discovery import FILE_NAME
from operations_center.errors import OperationsCenterError
from operations_center.text import on_one_line


def template_text() -> str:
    return Path(__file__).with_name("template.toml").read_text(encoding="utf-8")


def write_template(directory: Path) -> Path:
    """Write the template into ``directory``, made if need be; OperationsCenterError if it is there already."""
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # An empty one is what a killed `init` has left: it must not be in the way of the next.
        file = path.open("w" if _is_empty(path) else "x", encoding="utf-8")
        _fill(file, path)
    except FileExistsError:
        raise _cannot_write(path, "it exists already; edit it, or give another directory") from None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise _cannot_write(path, f"{problem}; give another directory") from None
    return path


def _fill(file: TextIO, path: Path) -> None:
    """A disk that is full half-way must leave nothing that looks like a configuration."""
    try:
        with file:
            file.write(template_text())
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
