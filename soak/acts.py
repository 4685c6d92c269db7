"""What the soak's tasks do, drawn by chance, and how each of them is to end."""

import json
import random
from dataclasses import dataclass
from typing import Any

WEIGHTS = {
    "plain": 20,
    "follow": 8,
    "claim": 6,
    "fail": 6,
    "give up": 4,
    "later": 6,
    "stubborn": 8,
    "children": 6,
    "leave": 5,
    "daemon": 10,
    "session": 6,
    "overrun": 2,
    "silent": 1,
    "hostile": 8,
}

KINDS = {"goal": 5, "improve": 4, "test": 4}

ENDS_BLOCKED = frozenset({"fail", "give up", "overrun", "silent"})
"""Acts that end blocked where nothing comes between; the others end done."""

HOSTILE = "hostile"
"""An act that spoils what its own run says of itself. The run ends in any way, and costs no other run anything."""

OVERSTAYS = frozenset({"overrun", "silent"})


@dataclass(frozen=True)
class Wish:
    """One task that is to be added."""

    title: str
    kind: str
    body: dict[str, Any]

    def as_json(self) -> dict[str, str]:
        return {"title": self.title, "kind": self.kind, "body": json.dumps(self.body)}


def draw_wish(chance: random.Random, number: int) -> Wish:
    [act] = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
    [kind] = chance.choices(list(KINDS), list(KINDS.values()))
    body: dict[str, Any] = {
        "act": act,
        "seconds": round(chance.uniform(0.05, 1.0) ** 2 * 3, 3),
        "count": chance.randint(2, 15),
        "times": chance.randint(1, 3),
        "after": round(chance.uniform(0.1, 2.5), 3),
        "stubborn": chance.random() < 0.5,
    }
    if act == "follow":
        body["follow_ups"] = [_follow_up(chance, number, each) for each in range(chance.randint(1, 2))]
    return Wish(f"soak {number}", kind, body)


def _follow_up(chance: random.Random, number: int, each: int) -> dict[str, str]:
    wanted = {"act": "plain", "seconds": round(chance.uniform(0.05, 0.6), 3)}
    return {"title": f"soak {number} follow-up {each}", "kind": "test", "body": json.dumps(wanted)}
