"""``up``: run the supervisor, in the foreground or detached."""

import logging
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click

from operations_center.cli.common import DURATION, config_option, json_option, print_json, read_config, refuse_to_start
from operations_center.cli.output import say
from operations_center.config import Config, load_config
from operations_center.environment import kept_apart
from operations_center.errors import LockHeld, NotFound, OperationsCenterError, Unavailable
from operations_center.forking import ForkServer
from operations_center.locks import lock_holder
from operations_center.logs import log_to
from operations_center.releases.config_copies import keep_copy
from operations_center.releases.deployment import INSTALLED, Version
from operations_center.running import fleet_elsewhere, note_place
from operations_center.state_directory import FORK_SERVER, SUPERVISOR
from operations_center.stopping.runs import DOWN_NOW, end_open_runs, our_stop
from operations_center.store import SCHEMA
from operations_center.supervisor import Supervisor, Wishes
from operations_center.supervisor.fork_server import live
from operations_center.supervisor.image import INSTALLED_CODE, execute
from operations_center.titles import holding
from operations_center.wiring import Center, open_center, prepare_to_start

READY_WITHIN_S = 30.0

CONTAINER_STOP_MS = 8_000

READY = "ready\n"

SAID_AT_MOST = 4096
"""Bytes: what a pipe takes at once, whoever reads it when (PIPE_BUF)."""


@click.command("up")
@click.option("--detach", is_flag=True, help="Return when the fleet is ready; it runs on in the background.")
@click.option("--exit-when-idle", is_flag=True, help="End when nothing that this fleet could run is left.")
@click.option("--only", multiple=True, metavar="ROLE", help="Only this role; may be repeated.")
@click.option(
    "--stop-timeout",
    type=DURATION,
    metavar="D",
    help="End executors with the fleet, within this time. Default: 8s as process 1 of a container, else they run on.",
)
@click.option("--detached", is_flag=True, hidden=True, help="Log into the state directory.")
@click.option("--ready-fd", type=int, hidden=True, help="Written to when the fleet is ready.")
@click.option("--lock-fd", type=int, hidden=True, help="The supervisor's lock, which is held already.")
@click.option("--release", hidden=True, help="The commit whose code this process runs.")
@click.option("--config-copy", type=click.Path(path_type=Path), hidden=True, help="Read this in its place.")
@click.option("--handed-back", hidden=True, help="Why an image ended that this one had executed.")
@config_option
@json_option
def command(
    detach: bool,
    exit_when_idle: bool,
    only: Sequence[str],
    stop_timeout: int | None,
    detached: bool,
    ready_fd: int | None,
    lock_fd: int | None,
    release: str | None,
    config_copy: Path | None,
    handed_back: str | None,
    config_file: Path | None,
    as_json: bool,
) -> int:
    """Run the supervisor: watchers and watchdog.

    Ctrl-C, TERM and a terminal that closes stop the watchers and leave executors running, to be adopted by the
    next `up`; a second Ctrl-C or TERM ends executors, too. As process 1 of a container the first one does: nothing
    outlives it.
    """
    config = read_config(config_file, config_copy)
    for role in only:
        if role not in config.roles:
            raise NotFound(f"cannot start role {role}: the configuration has {', '.join(config.roles)}")
    _refuse_beside_another(config)
    state = prepare_to_start(config)
    words = _words(config.file, only, exit_when_idle, detached or detach, stop_timeout)
    version = INSTALLED
    if not detach:
        config_copy = config_copy or state.config_copy(keep_copy(config.file, state))
        config = load_config(config.file, os.environ, config_copy)
        version = Version(None if release in (None, INSTALLED_CODE) else release, config_copy.name)
        # One that is replaced by this image, and had no [code_pull], has its lock still.
        if config.code_pull is not None and release is None and lock_fd is None:
            _become_current(config, version, words, ready_fd)
    # Before anything is opened that a watcher must not inherit.
    with _saying_that_no_process_starts():
        fork_server = None if detach else ForkServer.start(live, state.log(FORK_SERVER))
    center, caller = open_center(config, version=version), _Caller(ready_fd)
    try:
        refuse_to_start(center, "the supervisor")
        note_place(config, os.environ)
        if fork_server is None:
            _refuse_a_second(center.state.supervisor_lock)
            return _detach(center.state.log(SUPERVISOR), center.runtime(None).command(*words), as_json)
        log_to(center.state.log(SUPERVISOR) if detached else None)
        for section in config.inactive_sections:
            logging.warning("[%s] is valid, and inactive in this version", section)
        return Supervisor(
            center,
            Wishes(
                only,
                exit_when_idle,
                lock_fd,
                handed_back,
                reload_on_hang_up=detached or "NOTIFY_SOCKET" in os.environ,
                stop_timeout_ms=stop_timeout if stop_timeout is not None else _time_of_a_container(),
            ),
            fork_server,
            words,
            end_executors=lambda within_s: _end_executors(center, within_s),
            on_ready=lambda: caller.tell(READY),
        ).run()
    except OperationsCenterError as error:
        caller.tell(str(error))
        raise
    finally:
        center.close()


def _refuse_beside_another(config: Config) -> None:
    """Its executors would run beside ours, and nobody would see both. Raises LockHeld."""
    elsewhere = fleet_elsewhere(config, os.environ)
    if elsewhere is not None:
        raise LockHeld(
            f"cannot start the supervisor: the fleet of {config.file} runs in {elsewhere}, and the file says "
            f"{config.center.state_dir}; end it with `operations-center down --now`, or put center.state_dir back"
        )


def _end_executors(center: Center, within_s: float | None) -> None:
    order = DOWN_NOW if within_s is None else our_stop(within_s)
    _, unrecorded = end_open_runs(center, within_s, order)
    if unrecorded is not None:
        logging.error(unrecorded)


@contextmanager
def _saying_that_no_process_starts() -> Iterator[None]:
    """Raises Unavailable."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"cannot start the supervisor: no process can be started: {error.strerror or error}; "
            "end some, or allow more (ulimit -u), and try again"
        ) from error


def _become_current(config: Config, version: Version, words: list[str], ready_fd: int | None) -> None:
    """Execute the supervisor of the release that is current, if there is one; else, or if it cannot start, go on."""
    with closing(open_center(config, version=version)) as center:
        deployment = center.deployments.read()
        commit = deployment.current.commit if deployment else None
        if commit is None or not center.state.release(commit).is_dir():
            return
        release = center.releases.find(commit)
        if release is not None and not release.fits(SCHEMA):
            return
        on = [] if ready_fd is None else ["--ready-fd", str(ready_fd)]
        copy = ["--config-copy", str(center.state.config_copy(version.config))]
        before = center.runtime(None).command(*words, *on, "--release", INSTALLED_CODE, *copy)
        runtime = center.runtime(commit)
    execute(runtime, [*words, *on, "--release", commit, *copy], None, before)


def _time_of_a_container() -> int | None:
    """The kernel ends all processes of a pid namespace with its first one. `docker stop` kills it after 10 s."""
    return CONTAINER_STOP_MS if os.getpid() == 1 else None


def _words(
    config_file: Path, only: Sequence[str], exit_when_idle: bool, detached: bool, stop_timeout: int | None
) -> list[str]:
    """Of the command line that runs such a supervisor in the foreground."""
    wishes = [word for role in only for word in ("--only", role)]
    wishes += [] if stop_timeout is None else ["--stop-timeout", f"{stop_timeout}ms"]
    flags = [flag for flag, is_set in (("--exit-when-idle", exit_when_idle), ("--detached", detached)) if is_set]
    return ["up", "--config", str(config_file), *wishes, *flags]


def _refuse_a_second(lock: Path) -> None:
    """Here, for what a supervisor in the background has to say stands in the log of the one that runs."""
    holder = lock_holder(lock)
    if holder is not None:
        raise LockHeld(f"cannot start the supervisor: {holding(holder, lock)}")


class _Caller:
    """Whoever has started this process in the background, and waits for one word of it."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def tell(self, word: str) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.write(descriptor, word.encode()[:SAID_AT_MOST])
            os.close(descriptor)


def _detach(log: Path, command: Sequence[str], as_json: bool) -> int:
    with tempfile.TemporaryFile() as errors:
        popen, ready = _start_detached(command, errors.fileno())
        readable, _, _ = select.select([ready], [], [], READY_WITHIN_S)
        said = os.read(ready, SAID_AT_MOST) if readable else b""
        if readable and said != READY.encode():
            # It ends, and says why there, or before it had a log.
            code = popen.wait()
            words = (said or os.pread(errors.fileno(), SAID_AT_MOST, 0)).decode(errors="replace").strip()
            say(words or f"cannot start the fleet: its supervisor ended before all were ready, see {log}", err=True)
            return code if code > 0 else 1
    # The child runs on; that it is not waited for is what --detach means.
    popen.returncode = 0
    if not readable:
        raise OperationsCenterError(
            f"cannot say that the fleet is ready: it was not within {READY_WITHIN_S:.0f} s; "
            f"process {popen.pid} goes on, see {log}"
        )
    if as_json:
        print_json({"pid": popen.pid, "log": str(log)})
    else:
        say(f"up: the supervisor is process {popen.pid}; its log is {log}")
    return 0


def _start_detached(command: Sequence[str], errors: int) -> "tuple[subprocess.Popen[bytes], int]":
    """The supervisor in a session of its own, and a descriptor that it writes to when the fleet is ready."""
    ready, write_end = os.pipe()
    try:
        with _saying_that_no_process_starts(), kept_apart(os.environ) as (environment, variables):
            popen = subprocess.Popen(
                [*command, "--ready-fd", str(write_end)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                pass_fds=(write_end, variables),
            )
    finally:
        os.close(write_end)
    return popen, ready
