"""``ledger backup DEST``."""

from pathlib import Path

import click
import msgspec

from operations_center.care.backup import back_up
from operations_center.care.manifest import artifacts_of, manifest_of
from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.ledger.leaving_out import tell_left_out
from operations_center.cli.output import say
from operations_center.store import Access


@click.command("backup")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@click.option("--artifacts", "with_artifacts", is_flag=True, help="Take along what the runs have in artifacts/.")
@config_option
@json_option
def backup(destination: Path, with_artifacts: bool, config_file: Path | None, as_json: bool) -> None:
    """Copy the ledger to DEST, a new file or a directory, also while the fleet runs; print the copy's path.

    DEST.manifest.json, by which `ledger restore` verifies it, has schema, rows of each table, and size and sha256 of
    the ledger and of every artifact. With --artifacts copies of these are in DEST.artifacts/RUN/.
    """
    with opened(config_file, Access.READ) as center:
        made = back_up(
            center.ledger,
            center.state.runs,
            destination.absolute(),
            center.clock.now().wall,
            with_artifacts=with_artifacts,
        )
    copy, artifacts = made.manifest.ledger, made.manifest.artifacts
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "bytes": copy.bytes,
                "runs": copy.tables["runs"],
                "events": copy.tables["events"],
                "manifest": str(manifest_of(made.path)),
                "sha256": copy.sha256,
                "tables": copy.tables,
                "artifacts": str(artifacts_of(made.path)) if artifacts.taken else None,
                "artifact_files": len(artifacts.files),
                "artifact_bytes": sum(each.bytes for each in artifacts.files),
                "left_out": msgspec.to_builtins(artifacts.left_out),
            }
        )
        return
    say(made.path)
    if artifacts.taken:
        tell_left_out("not taken along", artifacts.left_out)
