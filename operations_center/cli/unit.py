"""``unit``: a systemd unit that runs the fleet."""

import glob
import os
import sys
import unicodedata
from pathlib import Path

import click

from operations_center.care.service import environment_file, variables_of
from operations_center.cli.common import config_option, json_option, print_json, read_config
from operations_center.cli.output import say
from operations_center.config import Config
from operations_center.errors import OperationsCenterError

TEXT = """\
[Unit]
Description=Operations Center ({config_file})
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
WorkingDirectory={directory}
Environment={path}
# The variables that backends name{variables}: one NAME=value on each line. Keep the file to yourself: chmod 600.
# A secret may be a credential instead: LoadCredential=NAME:/path/of/the/file, and `secret_file` of its backend.
EnvironmentFile=-{environment_file}
ExecStart={start}
# Checks a changed configuration, and rolls it out.
ExecReload={reload}
# Only the supervisor is told to stop. "control-group" would end the executors together with the watchers;
# this way they run on, and the next start adopts them. To end them too: operations-center down --now
KillMode=process
# A cgroup for each run, so that nothing of it can hide; and an executor that runs out of memory is its own
# affair, not a reason to stop the fleet.
Delegate=yes
OOMPolicy=continue
# Also after a signal of a stranger: the supervisor then ends with 143. 0: its owner has stopped it, by `down`.
# 75: another supervisor runs already. 78: the configuration is wrong. Starting again helps neither.
Restart=always
RestartSec=1s
RestartPreventExitStatus=0 75 78
SuccessExitStatus=143

[Install]
WantedBy={target}
"""


@click.command("unit")
@config_option
@json_option
def command(config_file: Path | None, as_json: bool) -> None:
    """Print a systemd unit for this configuration.

    As a user: save it as ~/.config/systemd/user/operations-center.service, then
    `systemctl --user enable --now operations-center` and `loginctl enable-linger`.
    """
    text = unit_text(read_config(config_file))
    if as_json:
        print_json({"unit": text})
    else:
        say(text.removesuffix("\n"), keep="\n")


def unit_text(config: Config) -> str:
    """Raises OperationsCenterError for what systemd cannot be told."""
    program, file = _program(), str(config.file)
    return TEXT.format(
        config_file=_on_a_line(file),
        directory=_on_a_line(str(config.directory)),
        path=_quoted(f"PATH={os.environ.get('PATH', os.defpath)}"),
        variables=_listed(config),
        # Its value is a pattern (systemd.exec(5)).
        environment_file=_on_a_line(glob.escape(str(environment_file(config)).replace("\\", "\\\\"))),
        start=_command_line([*program, "up", "--config", file]),
        reload=_command_line([*program, "restart", "--config", file]),
        target="multi-user.target" if os.geteuid() == 0 else "default.target",
    )


def _program() -> list[str]:
    script = Path(sys.executable).with_name("operations-center")
    # -P: the working directory must not lend its modules.
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "operations_center"]


def _listed(config: Config) -> str:
    names = variables_of(config)
    return f" ({', '.join(names)})" if names else ""


def _command_line(words: list[str]) -> str:
    if "$" in words[0]:
        # systemd.service(5) has no quoting for it in the name of a program.
        raise _untold(words[0])
    return " ".join([_quoted(words[0]), *(_quoted(word).replace("$", "$$") for word in words[1:])])


def _quoted(word: str) -> str:
    """One word of a line (systemd.syntax(7), "Quoting")."""
    escaped = _without_specifiers(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if any(c in escaped for c in " \t'\";\\") else escaped


def _on_a_line(text: str) -> str:
    """What stands as it is to the end of its line: nothing there can be quoted."""
    if text != text.strip() or text.endswith("\\"):
        raise _untold(text)
    return _without_specifiers(text)


def _without_specifiers(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise _untold(text)
    # systemd.unit(5): "%" begins a specifier.
    return text.replace("%", "%%")


def _untold(text: str) -> OperationsCenterError:
    shown = text.encode("unicode_escape").decode()
    return OperationsCenterError(
        f"cannot print a unit: systemd can be told no name such as {shown}; give it a plain one, and try again"
    )
