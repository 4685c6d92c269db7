"""Every decision and what it hit, in a file, so that a breach can be explained by what was done around it."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak.kernel import Process


@dataclass
class Journal:
    path: Path
    hits: Counter[str] = field(default_factory=Counter)
    """How many processes of each kind were killed or stopped: "kill watcher" → 12."""
    struck: set[str] = field(default_factory=set)
    """Runs of which a process was killed."""

    def write(self, actor: str, deed: str, hit: Iterable[Process] = (), **more: Any) -> None:
        """``hit``: the processes that the deed was done to."""
        hit = list(hit)
        for process in hit:
            verb = deed.partition(" ")[0]
            self.hits[f"{verb} {process.kind}"] += 1
            if process.run is not None and verb == "kill":
                self.struck.add(process.run)
        line = {
            "at_ns": time.monotonic_ns(),
            "at": time.time(),
            "actor": actor,
            "deed": deed,
            **more,
            "hit": [{"pid": each.seen.pid, "kind": each.kind, "role": each.role, "run": each.run} for each in hit],
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        with self.path.open() as file:
            return [json.loads(line) for line in file]
