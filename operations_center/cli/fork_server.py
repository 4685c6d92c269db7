"""``fork-server``: what the supervisor starts to fork watchers from."""

import socket

import click

# Imported before the first fork, so that no watcher has to.
from operations_center.cli import run, watch, watchdog
from operations_center.forking import become, serve

FORKED = (watch.command, watchdog.command)


@click.command("fork-server", hidden=True)
@click.option("--control", type=int, required=True, help="The socket on which the supervisor asks.")
def command(control: int) -> int:
    """Fork a watcher for each request of the supervisor."""
    with socket.socket(fileno=control) as connection:
        request = serve(connection)
    if request is None:
        return 0
    become(request)
    return run(list(request.arguments))
