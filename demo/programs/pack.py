"""Fork workers that compress files side by side; each is unpacked again and compared by its digest."""

import hashlib
import lzma
import os
import random
from pathlib import Path

from witness import result, witnessed


def generate(path: Path, kilobytes: int) -> None:
    chance = random.Random(path.name)
    words = [f"{chance.getrandbits(40):x}" for _ in range(4000)]
    text = " ".join(chance.choices(words, k=kilobytes * 110))
    path.write_text(text[: kilobytes * 1024])


def pack(path: Path) -> bool:
    data = path.read_bytes()
    packed = path.with_suffix(".xz")
    packed.write_bytes(lzma.compress(data, preset=6))
    return hashlib.sha256(lzma.decompress(packed.read_bytes())).digest() == hashlib.sha256(data).digest()


def fork_worker(path: Path, kilobytes: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            generate(path, kilobytes)
            code = 0 if pack(path) else 1
        finally:
            os._exit(code)
    return pid


def pack_side_by_side(workers: str, kilobytes: str) -> int:
    paths = [Path(f"file-{number}.txt") for number in range(int(workers))]
    pids = [fork_worker(path, int(kilobytes)) for path in paths]
    print(f"workers {pids}", flush=True)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(statuses):
        return 1
    before = sum(path.stat().st_size for path in paths)
    after = sum(path.with_suffix(".xz").stat().st_size for path in paths)
    result(f"{len(pids)} forked workers packed {before >> 10:,} KiB into {after >> 10:,}")
    return 0


witnessed(pack_side_by_side)
