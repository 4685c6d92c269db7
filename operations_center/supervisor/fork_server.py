"""The life of the fork server, and of what it forks: a watcher, or the watchdog."""

import logging
import os
import socket
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import Never

from operations_center.config import load_config
from operations_center.environment import TAKE_OVER, kept_apart
from operations_center.errors import NotFound, OperationsCenterError
from operations_center.forking import Fork, serve
from operations_center.logs import log_to
from operations_center.releases.deployment import Version
from operations_center.releases.runtime import Runtime
from operations_center.state_directory import WATCHDOG
from operations_center.store import Access
from operations_center.titles import FORK_SERVER, take_title
from operations_center.titles import WATCHDOG as WATCHDOG_TITLE
from operations_center.titles import WATCHER as WATCHER_TITLE
from operations_center.watchdog import Watchdog
from operations_center.watcher import Watcher
from operations_center.wiring import Center, open_center

# A release may be of before there was anything to take over.
_WITH_ITS_VARIABLES = f"""{TAKE_OVER}
import runpy
runpy.run_module("{__package__}", run_name="__main__", alter_sys=True)
"""


def live(control: socket.socket) -> Never:
    """With the code that this process has imported."""
    take_title(FORK_SERVER)
    with control:
        request = serve(control)
    code = 0 if request is None else _live_as(request)
    logging.shutdown()
    os._exit(code)


def live_anew(runtime: Runtime, control: socket.socket) -> Never:
    """With the code of a release as it is there now, and nothing of this process but the socket."""
    control.set_inheritable(True)
    argv = runtime.script(_WITH_ITS_VARIABLES, str(control.fileno()))
    with kept_apart(runtime.environment(os.environ)) as (environment, variables):
        os.set_inheritable(variables, True)
        os.execve(argv[0], argv, environment)


def main() -> Never:
    live(socket.socket(fileno=int(sys.argv[1])))


def _live_as(request: Fork) -> int:
    """Its exit code. What goes wrong is said in its log."""
    os.setsid()
    take_title(WATCHDOG_TITLE if request.name == WATCHDOG else WATCHER_TITLE)
    try:
        log_to(Path(request.log))
        with closing(_open(request)) as center:
            return _run(center, request.name)
    except OperationsCenterError as error:
        logging.error("%s", error)
        return error.exit_code
    except OSError as error:
        logging.error("cannot go on: %s", error)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _open(request: Fork) -> Center:
    copy = Path(request.config_copy) if request.config_copy else None
    config = load_config(Path(request.config_file), os.environ, copy)
    return open_center(config, Access.EXISTING, Version(request.release, copy.name if copy else ""))


def _run(center: Center, name: str) -> int:
    if name == WATCHDOG:
        return Watchdog(center).run()
    role = center.config.roles.get(name)
    if role is None:
        raise NotFound(f"cannot watch for role {name}: the configuration has it no more")
    return Watcher(center, role).run()
