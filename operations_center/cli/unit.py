"""``unit``: a systemd unit that runs the fleet."""

import os
import sys
from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, print_json, read_config
from operations_center.cli.output import say
from operations_center.config import Config

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
ExecStart={command}
# Only the supervisor is told to stop. "control-group" would end the executors together with the watchers;
# this way they run on, and the next start adopts them. To end them too: operations-center down --now
KillMode=process
# A cgroup for each run, so that nothing of it can hide; and an executor that runs out of memory is its own
# affair, not a reason to stop the fleet.
Delegate=yes
OOMPolicy=continue
Restart=on-failure
RestartSec=1s
# 75: another supervisor runs already. 78: the configuration is wrong. Starting again helps neither.
RestartPreventExitStatus=75 78

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
    words = [*_program(), "up", "--config", str(config.file)]
    return TEXT.format(
        config_file=_without_specifiers(str(config.file)),
        directory=_without_specifiers(str(config.directory)),
        path=_quoted(f"PATH={os.environ.get('PATH', os.defpath)}"),
        command=" ".join(_quoted(word).replace("$", "$$") for word in words),
        target="multi-user.target" if os.geteuid() == 0 else "default.target",
    )


def _program() -> list[str]:
    script = Path(sys.executable).with_name("operations-center")
    return [str(script)] if script.exists() else [sys.executable, "-m", "operations_center"]


def _quoted(word: str) -> str:
    escaped = _without_specifiers(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if any(c in escaped for c in " \t'\";\\") else escaped


def _without_specifiers(text: str) -> str:
    # systemd.unit(5): "%" begins a specifier.
    return text.replace("%", "%%")
