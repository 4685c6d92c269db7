"""Sort a file that is treated as too large for memory: sorted parts on disk, merged into one."""

import heapq
import os
import random
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path

from witness import result, witnessed

PART = 60_000


def generate(path: Path, lines: int) -> None:
    chance = random.Random(path.name)
    with path.open("w") as file:
        for _ in range(lines):
            file.write(f"{chance.getrandbits(64):016x} {chance.randrange(10**6)}\n")


def sorted_parts(path: Path) -> list[Path]:
    parts = []
    with path.open() as file:
        while lines := list(islice(file, PART)):
            part = path.with_name(f"part-{len(parts)}")
            part.write_text("".join(sorted(lines)))
            parts.append(part)
    return parts


def merge(parts: list[Path], into: Path) -> None:
    with ExitStack() as files, into.open("w") as merged:
        merged.writelines(heapq.merge(*(files.enter_context(part.open()) for part in parts)))


def sort_lines(lines: str) -> int:
    unsorted, sorted_file = Path("unsorted.txt"), Path("sorted.txt")
    generate(unsorted, int(lines))
    parts = sorted_parts(unsorted)
    merge(parts, sorted_file)
    with sorted_file.open() as file:
        in_order = all(a <= b for a, b in pairwise(file))
    if not in_order or os.path.getsize(unsorted) != os.path.getsize(sorted_file):
        return 1
    result(f"{int(lines):,} lines in order, {len(parts)} parts merged", artifacts=[str(sorted_file.absolute())])
    return 0


witnessed(sort_lines)
