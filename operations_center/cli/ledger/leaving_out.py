"""What a backup or a restore has left out, told on stderr: stdout has the path alone."""

from collections.abc import Sequence

from operations_center.care.manifest import LeftOut
from operations_center.cli.output import say

AT_MOST = 10
"""Lines; ``--json`` has them all."""


def tell_left_out(what: str, left_out: Sequence[LeftOut]) -> None:
    for each in left_out[:AT_MOST]:
        name = f"/{each.name}" if each.name is not None else ""
        say(f"{what}: {each.run_id}{name}: {each.reason}", err=True)
    if len(left_out) > AT_MOST:
        say(f"{what}: {len(left_out) - AT_MOST} more, which --json names", err=True)
