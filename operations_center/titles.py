"""What a process is called in ``ps``, ``top``, ``pgrep`` and ``pkill``: both its command line and its name.

An executor ends its own programs by a word of their command line (``pkill -f server``). So a title of ours has no word
that means anything elsewhere: no interpreter, path, role, or word of the configuration.
"""

import os

from setproctitle import setproctitle

SUPERVISOR = "oc-sup"
WATCHER = "oc-wtch"
WATCHDOG = "oc-wdog"
FORK_SERVER = "oc-fork"
PULL = "oc-pull"

OF_COMMAND = {"up": SUPERVISOR, "watch": WATCHER, "watchdog": WATCHDOG, "stage": PULL}
"""Of the commands that run for as long as the fleet does, or for minutes."""


def take_title(title: str) -> None:
    # Else it writes over the environment that /proc shows, by which a fleet knows the processes of its runs.
    os.environ["SPT_NOENV"] = "1"
    setproctitle(title)
    del os.environ["SPT_NOENV"]
