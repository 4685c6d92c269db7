"""Remove a directory that other people's programs have written to."""

import os
import shutil
from pathlib import Path


def remove_directory(directory: Path) -> None:
    """With all that is in it; nothing happens where there is none. Raises OSError."""
    if not directory.exists():
        return
    try:
        shutil.rmtree(directory)
    except PermissionError:
        # A program may leave directories that are not writable, such as Go's module cache, or not even readable.
        os.chmod(directory, 0o700)
        for parent, names, _ in os.walk(directory):
            for path in (os.path.join(parent, name) for name in names):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
        shutil.rmtree(directory)
