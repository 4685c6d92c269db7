"""A command whose runs fail at once: the rest of the queue waits until it works again."""

from tests.fleet import Fleet, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["sh", "-c", '''[ -e "$HOME/logged-in" ] || exit 3''']
max_concurrent = 1
breaker = { failures = 3, cooldown = "1h" }
"""


def test_a_queue_is_not_burned_by_a_command_that_fails_at_once_and_goes_on_when_a_person_has_mended_it(
    fleet: Fleet,
) -> None:
    fleet.configure(CONFIG)
    fleet.add(6, "goal")
    fleet.up()

    def states() -> list[str]:
        return [task["state"] for task in fleet.json("task", "list")["tasks"]]

    def backend() -> dict[str, str]:
        (found,) = fleet.json("status")["backends"]
        return dict(found)

    wait_until(lambda: backend()["breaker"] == "open", "the breaker to open")
    assert states() == ["blocked"] * 3 + ["ready"] * 3
    why = "3 runs in a row have failed within 60 s, the last: exit code 3"
    assert backend()["breaker_reason"] == why
    status = fleet.json("status")
    assert (status["state"], [why in problem for problem in status["problems"]]) == ("degraded", [True])
    assert why in fleet.run("status").stdout
    (reason,) = fleet.json("why")["tasks"][0]["reasons"]
    assert (reason["reason"], why in reason["detail"]) == ("breaker", True)

    (fleet.root / "logged-in").touch()
    assert fleet.json("resume", "agent")["breakers_closed"] == ["agent"]
    wait_until(lambda: states() == ["blocked"] * 3 + ["done"] * 3, "the rest of the queue")
    assert (backend()["breaker"], fleet.json("status")["state"]) == ("closed", "up")
    kinds = [event["kind"] for event in fleet.json("events")["events"]]
    assert (kinds.count("breaker.opened"), kinds.count("breaker.closed")) == (1, 1)
