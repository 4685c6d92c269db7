"""Which file is the configuration."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from operations_center.errors import ConfigError
from operations_center.text import on_one_line

FILE_NAME = "operations_center.toml"


def find_config(explicit: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The absolute path of the configuration; ConfigError if there is none.

    A file that was named, by ``explicit`` or ``$OPERATIONS_CENTER_CONFIG``, must be there; else it is the first
    ``operations_center.toml`` in ``cwd``, its parents and the user's configuration directory.
    """
    if explicit is not None:
        return _named(cwd / explicit, "name another with --config")
    if environ.get("OPERATIONS_CENTER_CONFIG"):
        return _named(cwd / environ["OPERATIONS_CENTER_CONFIG"], "change $OPERATIONS_CENTER_CONFIG")
    for candidate in _candidates(environ, cwd):
        if _is_file(candidate):
            return candidate
    raise ConfigError(
        [
            on_one_line(
                f"cannot find {FILE_NAME} in {cwd}, its parents or the user's configuration directory:"
                " run operations-center init"
            )
        ]
    )


def _named(path: Path, otherwise: str) -> Path:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        advice = f"create it with operations-center init, or {otherwise}"
        raise ConfigError([on_one_line(f"cannot find {path}: it does not exist ({advice})")]) from None
    except OSError:
        pass  # it may be there: reading it gives the better message
    return path


def _candidates(environ: Mapping[str, str], cwd: Path) -> Iterator[Path]:
    for directory in (cwd, *cwd.parents):
        yield directory / FILE_NAME
    if environ.get("XDG_CONFIG_HOME"):
        yield Path(environ["XDG_CONFIG_HOME"], "operations_center", FILE_NAME)
    elif environ.get("HOME"):
        yield Path(environ["HOME"], ".config", "operations_center", FILE_NAME)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
