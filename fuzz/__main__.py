"""Run the fuzzer: ``python -m fuzz``."""

import argparse
import random
import sys
import time

from fuzz.campaign import Finding, run_target
from fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Rubbish in every place that somebody else may write: no traceback, no hang, nothing written "
        "outside, no signal to a stranger.",
    )
    parser.add_argument(
        "--inputs", type=int, default=100_000, metavar="N", help="in all, shared by the targets (100000)"
    )
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="of every input (a random one)")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    names = options.target or list(TARGETS)
    print(f"{options.inputs} inputs, seed {seed}, targets: {', '.join(names)}", flush=True)
    findings = [
        finding for name in names if (finding := _run(name, -(-options.inputs // len(names)), seed)) is not None
    ]
    for finding in findings:
        print(f"\n{finding.target}:\n{finding.report}")
    print(f"{len(findings)} of {len(names)} targets have a fault")
    return 1 if findings else 0


def _run(name: str, count: int, seed: int) -> Finding | None:
    begun = time.monotonic()
    outcome = run_target(name, TARGETS[name], count, seed)
    verdict = "FAULT" if outcome.finding else "ok"
    print(f"{name:20} {outcome.tried:7} inputs  {time.monotonic() - begun:6.1f} s  {verdict}", flush=True)
    return outcome.finding


if __name__ == "__main__":
    sys.exit(main())
