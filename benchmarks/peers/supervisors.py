"""How each supervisor is told to keep n copies of one child alive, in the foreground.

A function gets a directory of its own, the child's command, n and the variant, and gives a command and what is set in
its environment. ``best`` is the most aggressive setting that we found sane.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers.common import BIN, PM2, UNPACKED_ENV

Command = tuple[Sequence[str | Path], dict[str, str]]


def supervisord(directory: Path, child: Sequence[str], n: int, variant: str) -> Command:
    """Default: a child must live for a second to count as started."""
    more = {"default": "", "best": "startsecs=0\nautorestart=true\n"}[variant]
    programs = "".join(f"[program:w{i}]\ncommand={' '.join(child)}\n{more}" for i in range(n))
    (directory / "s.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={directory}/log\npidfile={directory}/pid\nchildlogdir={directory}\n"
        f"user=root\n[unix_http_server]\nfile={directory}/sock\n[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n" + programs
    )
    return [BIN / "supervisord", "-c", directory / "s.conf"], {}


def circus(directory: Path, child: Sequence[str], n: int, variant: str) -> Command:
    """Default: it looks every five seconds."""
    more = {"default": "", "best": "check_delay = 0.1\n"}[variant]
    watchers = "".join(f"[watcher:w{i}]\ncmd = {' '.join(child)}\nnumprocesses = 1\n" for i in range(n))
    endpoints = f"endpoint = ipc://{directory}/e\npubsub_endpoint = ipc://{directory}/p\n"
    (directory / "c.ini").write_text(f"[circus]\n{more}{endpoints}{watchers}")
    return [BIN / "circusd", directory / "c.ini"], {}


def s6(directory: Path, child: Sequence[str], n: int, variant: str) -> Command:
    """Best: with readiness notification, without which s6 >= 2.11.2 never skips its restart delay of 1 s."""
    return ["s6-svscan", _service_directories(directory, child, n, notify=variant == "best")], {}


def runit(directory: Path, child: Sequence[str], n: int, _variant: str) -> Command:
    """It has no settings that matter here."""
    return ["runsvdir", "-P", _service_directories(directory, child, n, notify=False)], UNPACKED_ENV


def honcho(directory: Path, child: Sequence[str], n: int, _variant: str) -> Command:
    """It ends all when one ends."""
    (directory / "Procfile").write_text("".join(f"w{i}: exec {' '.join(child)}\n" for i in range(n)))
    return [BIN / "honcho", "-f", directory / "Procfile", "start"], {}


def pm2(directory: Path, child: Sequence[str], n: int, _variant: str) -> Command:
    """It daemonises: its pid is in a file."""
    apps = [{"name": f"w{i}", "script": child[1], "interpreter": "/bin/sh", "exec_mode": "fork"} for i in range(n)]
    (directory / "eco.config.js").write_text("module.exports = " + json.dumps({"apps": apps}))
    environment = {"PM2_HOME": str(directory / "pm2"), "PM2_DISABLE_VERSION_CHECK": "true"}
    return [PM2, "start", directory / "eco.config.js"], environment


def operations_center(directory: Path, _child: Sequence[str], n: int, _variant: str) -> Command:
    """Its children are its own watchers, which announce themselves (fleets.announcing_interpreters)."""
    roles = "".join(f'[roles.w{i}]\nbackend = "agent"\n' for i in range(n))
    backend = '[backends.agent]\nkind = "command"\nargv = ["true"]\nmax_concurrent = 1\n'
    (directory / "operations_center.toml").write_text(roles + backend)
    command = [sys.executable, "-P", "-m", "operations_center", "up", "--config", directory / "operations_center.toml"]
    return command, {"HOME": str(directory)}


def floor_python(_directory: Path, child: Sequence[str], n: int, _variant: str) -> Command:
    """The smallest supervisor that Python allows: waitpid, posix_spawn."""
    code = (
        "import os,sys\na=sys.argv[2:]\n"
        "sp=lambda: os.posix_spawn(a[0],a,os.environ)\n"
        "[sp() for _ in range(int(sys.argv[1]))]\n"
        "while True:\n os.waitpid(-1,0)\n sp()\n"
    )
    return [sys.executable, "-S", "-E", "-c", code, str(n), *child], {}


def _service_directories(directory: Path, child: Sequence[str], n: int, *, notify: bool) -> Path:
    for i in range(n):
        service = directory / "scan" / f"w{i}"
        service.mkdir(parents=True)
        if notify:
            (service / "notification-fd").write_text("3\n")
        ready = "echo >&3\nexec 3>&-\n" if notify else ""
        (service / "run").write_text(f"#!/bin/sh\n{ready}exec {' '.join(child)}\n")
        (service / "run").chmod(0o755)
    return directory / "scan"


SUPERVISORS: dict[str, tuple[Callable[[Path, Sequence[str], int, str], Command], tuple[str, ...]]] = {
    "floor_python": (floor_python, ("default",)),
    "operations-center": (operations_center, ("default",)),
    "supervisord": (supervisord, ("default", "best")),
    "circus": (circus, ("default", "best")),
    "s6": (s6, ("default", "best")),
    "runit": (runit, ("default",)),
    "pm2": (pm2, ("default",)),
    "honcho": (honcho, ("default",)),
}
