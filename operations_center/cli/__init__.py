"""The command line: one file per command, each of which parses, calls and prints.

A command's module is imported only when the command runs, so that ``operations-center task add`` does not pay
for the supervisor.
"""

import errno
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from operations_center import __version__
from operations_center.cli.output import say
from operations_center.environment import clear_block, take_over
from operations_center.errors import OperationsCenterError
from operations_center.signals import SIGNALS
from operations_center.text import hide_secrets
from operations_center.titles import OF_COMMAND, take_title

LONGEST_DEFECT = 200

_ADVICE = {
    errno.EMFILE: "; allow more open files (ulimit -n)",
    errno.ENFILE: "; the machine has no more open files to give",
    errno.EAGAIN: "; end some processes, or allow more (ulimit -u)",
}
"""What to do about a limit."""

COMMANDS = {
    "init": "init",
    "up": "up",
    "down": "down",
    "restart": "restart",
    "status": "status",
    "watch": "watch",
    "watchdog": "watchdog",
    "reconcile": "reconcile",
    "runs": "runs",
    "explain": "explain",
    "why": "why",
    "logs": "logs",
    "stop": "stop",
    "resolve": "resolve",
    "task": "task",
    "events": "events",
    "pause": "pause",
    "resume": "resume",
    "rollback": "rollback",
    "ledger": "ledger",
    "pull": "pull",
    "releases": "releases",
    "doctor": "doctor",
    "config": "config",
    "unit": "unit",
}
"""Command → module of this package; the module's ``command`` is what runs."""

HIDDEN = {"stage": "stage"}
"""Likewise, for the fleet's own use."""


SHOW_NOTHING = {*OF_COMMAND, "pull"}
"""Commands under which programs of others run: those must not read our variables."""


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = COMMANDS.get(cmd_name) or HIDDEN.get(cmd_name)
        if name is None:
            return None
        module = import_module(f"operations_center.cli.{name}")
        command: click.Command = module.command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="operations-center")
def cli() -> None:
    """Supervise watchers that run long, expensive commands from a task board.

    Start with `operations-center init && operations-center up`.
    """


def main() -> None:
    _open_closed_streams()
    take_over()
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command in OF_COMMAND:
        take_title(OF_COMMAND[command])
    if command in SHOW_NOTHING:
        # After the title, which is found from where the variables were.
        clear_block()
    if command == "up" and os.getpid() == 1:
        # The kernel drops what the first process of a pid namespace does not expect: here it waits until it does.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    elif command != "up":
        # A supervisor has them blocked, also in what it starts. An image of it that was executed takes them itself.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.exit(run(sys.argv[1:]))


def _open_closed_streams() -> None:
    """Else the next file that is opened would become somebody's standard output."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w"))


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code. Errors become one line that starts with ``cannot``."""
    try:
        answer: Any = cli.main(
            args=arguments,
            prog_name="operations-center",
            standalone_mode=False,
            # None: in colour on a terminal only (no-color.org).
            color=False if os.environ.get("NO_COLOR") else None,
        )
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _complain(error.exit_code, _usage_line(error))
    except OperationsCenterError as error:
        return _complain(error.exit_code, *str(error).split("\n"))
    except (KeyboardInterrupt, click.Abort):
        return 130
    except UnicodeEncodeError as error:
        return _complain(2, f"cannot run `operations-center`: {error.object!r:.80} is not UTF-8; write it in UTF-8")
    except OSError as error:
        return _complain_of_machine(error)
    except Exception as error:
        return _report_defect(arguments, error)


def _complain_of_machine(error: OSError) -> int:
    """A full disk or an output that cannot be written is no defect of ours. What was changed before, is changed."""
    try:
        return _complain(1, f"cannot go on: {_obstacle(error)}; what was changed before this is done")
    finally:
        # Nothing more of the output is tried when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _obstacle(error: OSError) -> str:
    if error.errno == errno.ENOENT and error.filename is None and _is_working_directory_gone():
        return "the working directory was removed; go to another"
    where = f": {error.filename}" if error.filename else "" if error.errno in _ADVICE else " (writing the output?)"
    return f"{error.strerror or error}{where}{_ADVICE.get(error.errno or 0, '')}"


def _is_working_directory_gone() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _complain(code: int, *lines: str) -> int:
    for line in lines:
        say(line, err=True)
    return code


def _usage_line(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "operations-center"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"cannot run `{command}`: {message}; see `{command} --help`"


def _report_defect(arguments: list[str], error: Exception) -> int:
    """An unexpected exception is a defect of ours: its traceback goes into a file, not over the screen."""
    report = Path(os.environ.get("TMPDIR", "/tmp")) / f"operations-center-report-{os.getpid()}-{int(time.time())}.txt"
    text = f"operations-center {__version__}\nsubcommand: {arguments[:1]}\n\n{hide_secrets(traceback.format_exc())}"
    try:
        descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        where = f"please report the file {report}"
    except OSError:
        where = " ".join(traceback.format_exc().split()[-12:])
    what = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_DEFECT]
    return _complain(1, f"cannot go on: an unexpected error, a defect of operations-center ({what}); {where}")
