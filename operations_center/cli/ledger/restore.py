"""``ledger restore SRC``."""

from pathlib import Path

import click
import msgspec

from operations_center.care.restore import Restored
from operations_center.care.restore import restore as restore_ledger
from operations_center.cli.common import config_option, json_option, print_json, read_config
from operations_center.cli.ledger.leaving_out import tell_left_out
from operations_center.cli.output import say


@click.command("restore")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@config_option
@json_option
def restore(source: Path, config_file: Path | None, as_json: bool) -> None:
    """Put a backup in the ledger's place; the fleet must be down. What was there is kept beside it.

    Before anything is changed, the backup is compared with the manifest beside it; artifacts that it took along
    are brought back, and overwrite nothing.
    """
    restored = restore_ledger(read_config(config_file), source.absolute())
    if as_json:
        print_json(
            {
                "path": str(restored.ledger),
                "replaced": str(restored.replaced) if restored.replaced else None,
                "fence": restored.fence,
                "runs": restored.runs,
                "events": restored.events,
                "tasks_ready": restored.ready,
                "manifest": str(restored.manifest) if restored.manifest else None,
                "artifacts_restored": restored.artifacts.restored,
                "artifacts_present": restored.artifacts.present,
                "left_out": msgspec.to_builtins(restored.artifacts.left_out),
            }
        )
    else:
        _tell(restored)


def _tell(restored: Restored) -> None:
    say(f"restored {restored.ledger}: {restored.runs} runs, {restored.events} events")
    if restored.replaced:
        say(f"what was there is kept as {restored.replaced}")
    if restored.manifest is None:
        say("the backup has no manifest: its log was verified, its hash and its artifacts were not")
    if restored.ready:
        say(
            f"{restored.ready} of its tasks are ready, and the next `up` runs them: look at them first if the backup "
            "comes from elsewhere (`operations-center task list`)"
        )
    artifacts = restored.artifacts
    if artifacts.restored or artifacts.present:
        say(f"{artifacts.restored} artifacts brought back, {artifacts.present} were there")
    tell_left_out("not brought back", artifacts.left_out)
