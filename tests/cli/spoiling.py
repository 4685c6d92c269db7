"""What may stand in the place of a file that is to be read."""

import os
from pathlib import Path


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("x")).name)
