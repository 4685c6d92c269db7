"""Find the file that is the configuration, and refuse one that somebody else could have put there.

The programs that a configuration names run as the user who obeys it. So one that was only found is obeyed where nobody
else could have written it. One that was named counts, and who else may write it is told.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from operations_center.errors import ConfigError
from operations_center.ownership import why_untrusted
from operations_center.text import on_one_line

FILE_NAME = "operations_center.toml"
VARIABLE = "OPERATIONS_CENTER_CONFIG"


def find_config(explicit: Path | None, environ: Mapping[str, str], cwd: Path | None) -> Path:
    """The absolute path of the configuration; ConfigError if there is none, or if it is not to be trusted.

    A file that was named, by ``explicit`` or ``$OPERATIONS_CENTER_CONFIG``, must be there; else it is the first
    ``operations_center.toml`` in ``cwd``, its parents and the user's configuration directory. The search ends with
    ``$HOME``, and at a file system's border. ``cwd`` None: the working directory was removed.
    """
    if explicit is not None:
        return _named(_below(cwd, explicit), "name another with --config")
    if environ.get(VARIABLE):
        return _named(_below(cwd, Path(environ[VARIABLE])), f"change ${VARIABLE}")
    for candidate in candidates(None, environ, cwd):
        if _is_file(candidate):
            _refuse_untrusted(candidate)
            return candidate
    if cwd is None:
        raise _no_working_directory(FILE_NAME)
    raise ConfigError(
        [
            on_one_line(
                f"cannot find {FILE_NAME} in {cwd}, its parents or the user's configuration directory:"
                " run operations-center init"
            )
        ]
    )


def _below(cwd: Path | None, path: Path) -> Path:
    if cwd is not None:
        return cwd / path
    if path.is_absolute():
        return path
    raise _no_working_directory(path)


def _no_working_directory(wanted: object) -> ConfigError:
    advice = "go to another, or name the file by its absolute path with --config"
    return ConfigError([on_one_line(f"cannot find {wanted}: the working directory was removed ({advice})")])


def _named(path: Path, otherwise: str) -> Path:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        advice = f"create it with operations-center init, or {otherwise}"
        raise ConfigError([on_one_line(f"cannot find {path}: it does not exist ({advice})")]) from None
    except OSError:
        pass  # it may be there: reading it gives the better message
    return path


def warning_of_named(path: Path) -> str | None:
    """Say who else could have written a file that a person has named; None where nobody could."""
    try:
        problem = why_untrusted(path)
    except OSError:
        return None  # reading it gives the better message
    return None if problem is None else on_one_line(f"warning: {path}: {problem}; the programs in it run as you")


def _refuse_untrusted(path: Path) -> None:
    try:
        problem = why_untrusted(path)
    except OSError as error:
        problem = f"{error.strerror or error}"
    if problem is not None:
        advice = "change that, or name the file with --config if you trust it"
        raise ConfigError([on_one_line(f"cannot use {path}: {problem} ({advice})")])


def candidates(explicit: Path | None, environ: Mapping[str, str], cwd: Path | None) -> Iterator[Path]:
    """Yield the files that may be the configuration, in the order in which they count; nothing of them is checked."""
    if explicit is not None or environ.get(VARIABLE):
        yield _below(cwd, explicit or Path(environ[VARIABLE]))
        return
    for directory in _directories(environ.get("HOME"), cwd) if cwd is not None else ():
        yield directory / FILE_NAME
    if environ.get("XDG_CONFIG_HOME"):
        yield Path(environ["XDG_CONFIG_HOME"], "operations_center", FILE_NAME)
    elif environ.get("HOME"):
        yield Path(environ["HOME"], ".config", "operations_center", FILE_NAME)


def _directories(home: str | None, cwd: Path) -> Iterator[Path]:
    """Yield ``cwd`` and its parents as far as the search goes."""
    real_home, device = os.path.realpath(home) if home else None, _device_of(cwd)
    for directory in (cwd, *cwd.parents):
        if _device_of(directory) != device:
            return
        yield directory
        if real_home is not None and os.path.realpath(directory) == real_home:
            return


def _device_of(directory: Path) -> int | None:
    try:
        return directory.stat().st_dev
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
