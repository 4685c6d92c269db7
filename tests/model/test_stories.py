"""Stories in the virtual world that a random one tells seldom, from each of their steps on."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

from operations_center.boards.local import NewTask
from operations_center.wiring import Center
from tests.model import operations
from tests.model.actors import Actor
from tests.model.world import HOUR_MS, LONG_ENOUGH, World

STEPS = range(1, 24)
"""More than it takes to start a run."""


@contextmanager
def a_world() -> Iterator[World]:
    world = World()
    try:
        world.board.add([NewTask("one", "goal")])
        yield world
        for execution in world.executions.values():
            for _ in range(4):
                execution.go_on()
        world.check()
        world.end_everything_here()
        world.come_to_rest()
    finally:
        world.close()


def watcher(world: World, namespace: int) -> Actor:
    actor = world.actor(world.namespaces[namespace], "goal")
    actor.begin(lambda center: operations.come_up(center, "goal"))
    actor.is_ready = True
    return actor


def start_a_run(center: Center) -> object:
    return operations.poll(center, "goal", None)


def test_a_spawner_that_is_stopped_until_its_lease_has_expired_starts_nothing() -> None:
    for steps in STEPS:
        with a_world() as world:
            spawner = watcher(world, 0)
            spawner.begin(start_a_run, steps)
            world.advance(82_000)
            world.actor(world.namespaces[1], "the watchdog").begin(operations.watch_over)
            world.finish(spawner)


def test_a_spawner_that_is_stopped_until_its_run_was_pruned_starts_nothing() -> None:
    for steps in STEPS:
        with a_world() as world:
            spawner = watcher(world, 0)
            spawner.begin(start_a_run, steps)
            world.advance(HOUR_MS)
            command = world.actor(world.namespaces[0], "a command")
            command.begin(operations.watch_over)
            world.advance(1_000)
            command.begin(lambda center: operations.prune(center, 0))
            world.finish(spawner)


def test_a_lease_that_is_renewed_while_a_reconciler_is_stopped_is_valid() -> None:
    for steps in STEPS:
        with a_world() as world:
            watcher(world, 1).begin(start_a_run)
            reconciler = world.actor(world.namespaces[2], "the watchdog")
            reconciler.begin(operations.watch_over, steps)
            world.advance(HOUR_MS)
            world.finish(reconciler)


def test_of_a_spawner_and_a_reconciler_one_wins_wherever_both_are_stopped() -> None:
    for steps, further, onward in product(range(4, 16), range(1, 40, 3), (2, 4, LONG_ENOUGH)):
        with a_world() as world:
            spawner = watcher(world, 0)
            spawner.begin(start_a_run, steps)
            world.advance(11_000)
            reconciler = world.actor(world.namespaces[0], "the watchdog")
            reconciler.begin(operations.watch_over, further)
            if spawner.is_busy:
                spawner.go_on(onward)
            for execution in world.executions.values():
                execution.go_on()
                execution.go_on()
            world.finish(reconciler)
            world.finish(spawner)
