"""What a service manager gives a fleet: a file of variables beside the configuration.

The file is systemd's (``EnvironmentFile=``, systemd.exec(5)). A fleet that is started at a shell does not read it.
"""

import re
import stat
from pathlib import Path

from operations_center.config import CommandSettings, Config, HttpJobSettings
from operations_center.files import read_file

FILE_NAME = "operations_center.env"

LARGEST_FILE = 1024 * 1024

_ASSIGNMENT = re.compile(rb"^[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*=", re.MULTILINE)


def environment_file(config: Config) -> Path:
    return config.directory / FILE_NAME


def variables_of(config: Config) -> list[str]:
    """Every variable that a backend is given or keeps a secret in, once, in the order of the file."""
    named: dict[str, None] = {}
    for backend in config.backends.values():
        match backend:
            case CommandSettings():
                named.update(dict.fromkeys(backend.env))
            case HttpJobSettings(secret_env=str(variable)):
                named[variable] = None
    return list(named)


def names_in(file: Path) -> frozenset[str] | None:
    """The variables that the file sets; None where there is none. Their values are not looked at. Raises OSError."""
    try:
        text = read_file(file, LARGEST_FILE)
    except FileNotFoundError:
        return None
    return frozenset(name.decode() for name in _ASSIGNMENT.findall(text))


def is_private(file: Path) -> bool:
    """Whether nobody but its owner may read or write it. Raises OSError."""
    return not file.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
