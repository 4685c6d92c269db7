"""Roles that share a backend: whose task goes first, and what a watcher reads for it."""

import json

from tests.fleet import Fleet, wait_until

BUDGET = "budget: backend agent has used 12 of 12 runs in the last day"
CONFIG = """
[roles.bulk]
backend = "agent"
poll_interval = "1h"
[roles.hot]
backend = "agent"
poll_interval = "1h"
[backends.agent]
kind = "command"
argv = ["sh", "-c", '''{ cat; echo; } >>"$HOME/order"; until [ -e "$HOME/go" ]; do sleep 0.05; done''']
max_concurrent = 1
max_per_day = 12
"""


def test_the_more_urgent_task_of_another_role_gets_the_next_slot_and_why_says_so(fleet: Fleet) -> None:
    fleet.configure(CONFIG)
    tasks = [{"title": f"b{number}", "kind": "bulk", "priority": "low"} for number in range(8)]
    fleet.run("task", "import", "-", stdin="".join(json.dumps(task) + "\n" for task in tasks))
    fleet.up()
    wait_until((fleet.root / "order").exists, "the first run")
    urgent = [{"title": f"h{number}", "kind": "hot", "priority": "urgent"} for number in range(5)]
    fleet.run("task", "import", "-", stdin="".join(json.dumps(task) + "\n" for task in urgent))

    def reasons(title: str) -> list[str]:
        waiting = {task["title"]: task["reasons"] for task in fleet.json("why")["tasks"]}
        return [f"{each['reason']}: {each['detail']}" for each in waiting[title]]

    first = "priority: a more urgent task t9 of role hot goes first"
    wait_until(lambda: first in reasons("b1"), "the wish of the other role")
    assert "cap: backend agent holds 1 of 1 slots" in reasons("b1")
    assert not any(reason.startswith("priority") for reason in reasons("h0"))

    fleet.let_go()
    wait_until(lambda: reasons("b7") == [BUDGET], "the budget to be used up")
    order = (fleet.root / "order").read_text().split()
    assert order == ["b0", *(f"h{number}" for number in range(5)), *(f"b{number}" for number in range(1, 7))]
    assert fleet.json("why")["tasks"][0]["title"] == "b7"
