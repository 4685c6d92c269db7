"""The configuration that a new user starts with."""

from pathlib import Path

from operations_center.config.discovery import FILE_NAME
from operations_center.config.wording import on_one_line
from operations_center.errors import OperationsCenterError


def template_text() -> str:
    return Path(__file__).with_name("template.toml").read_text(encoding="utf-8")


def write_template(directory: Path) -> Path:
    """Write the template into ``directory``, made if need be; OperationsCenterError if it is there already."""
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template_text())
    except FileExistsError:
        raise _cannot_write(path, "it exists already; edit it, or give another directory") from None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise _cannot_write(path, f"{problem}; give another directory") from None
    return path


def _cannot_write(path: Path, problem: str) -> OperationsCenterError:
    return OperationsCenterError(on_one_line(f"cannot write {path}: {problem}"))
