"""Archive in portions: a quota allows so much for one call, so the first call asks to be called again later."""

import hashlib
import os
import random
import zlib
from pathlib import Path

from witness import TRY_LATER, result, witnessed

QUOTA = 6
PORTION = 4_000_000


def portion(number: int) -> bytes:
    return random.Random(number).randbytes(PORTION // 2).hex().encode()


def archive(portions_text: str) -> int:
    """Goes on where the last call left off: the archive itself says how far that was."""
    portions = int(portions_text)
    shelf = Path(os.environ["DEMO_SHELF"]) / os.environ["OPERATIONS_CENTER_TASK_ID"]
    shelf.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(portions) if not (shelf / f"{number}.z").exists()]
    for number in missing[:QUOTA]:
        draft = shelf / f"{number}.draft"
        draft.write_bytes(zlib.compress(portion(number), 9))
        draft.rename(shelf / f"{number}.z")
        print(f"portion {number} archived", flush=True)
    if len(missing) > QUOTA:
        result(f"the quota allows {QUOTA} portions for now", outcome="retry", retry_after="500ms")
        return TRY_LATER
    for number in range(portions):
        restored = zlib.decompress((shelf / f"{number}.z").read_bytes())
        if hashlib.sha256(restored).digest() != hashlib.sha256(portion(number)).digest():
            return 1
    result(f"{portions} portions, {portions * PORTION >> 10:,} KiB archived and compared")
    return 0


witnessed(archive)
