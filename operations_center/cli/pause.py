"""``pause [ROLE|BACKEND]``: admit nothing until ``resume``."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.clock import rfc3339
from operations_center.config import Config
from operations_center.errors import NotFound
from operations_center.ledger import Pause
from operations_center.text import on_one_line

EVERYTHING = "*"


@click.command("pause")
@click.argument("name", metavar="[ROLE|BACKEND]", required=False)
@click.option("--reason", default="paused by a person", help="Why, for `why` and `status`.")
@config_option
@json_option
def command(name: str | None, reason: str, config_file: Path | None, as_json: bool) -> None:
    """Stop admission for a role, a backend or everything; runs that are open go on."""
    with opened(config_file) as center:
        refuse_unknown(center.config, name, "pause")
        pause = Pause(name or EVERYTHING, "person", on_one_line(reason), center.clock.now().wall)
        center.ledger.pause(pause)
    if as_json:
        print_json(pause_as_json(pause))
    else:
        say(f"{spell(pause.name)} is paused; `operations-center resume{f' {name}' if name else ''}` ends it")


def refuse_unknown(config: Config, name: str | None, verb: str) -> None:
    """Raises NotFound for a name that is neither a role nor a backend."""
    if name is not None and name not in config.roles and name not in config.backends:
        raise NotFound(
            on_one_line(
                f"cannot {verb} {name}: it is neither a role nor a backend; "
                f"roles are {', '.join(config.roles)}, backends {', '.join(config.backends)}"
            )
        )


def spell(name: str) -> str:
    return "everything" if name == EVERYTHING else name


def pause_as_json(pause: Pause) -> dict[str, str | None]:
    return {"name": pause.name, "source": pause.source, "reason": pause.reason, "since": rfc3339(pause.since)}
