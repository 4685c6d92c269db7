"""A remote's password is given to git, and to nobody else."""

import base64
import functools
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from operations_center.releases.credentials import address_of
from operations_center.releases.repository import Repository
from tests.releases.clones import Clones

PASSWORD = "p@ss w:rd/1"
WANTED = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


class Guarded(SimpleHTTPRequestHandler):
    """Serves a directory to who knows the password, and notes the command lines that are to be seen meanwhile."""

    seen: list[bytes]

    def do_GET(self) -> None:
        if self.headers["Authorization"] != WANTED:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                self.seen.append(path.read_bytes())
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(clones: Clones) -> Iterator[str]:
    """The host and port at which the remote is."""
    clones.git(clones.remote, "update-server-info")
    Guarded.seen = []
    handler = functools.partial(Guarded, directory=str(clones.root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("as_name", [False, True])
def test_the_password_of_a_remote_is_on_no_command_line(clones: Clones, served: str, as_name: bool) -> None:
    url = f"http://me:p%40ss%20w%3Ard%2F1@{served}/{clones.remote.name.replace(' ', '%20')}"
    if as_name:
        clones.git(clones.clone, "remote", "set-url", "origin", url)
    remote = "origin" if as_name else url
    head = Repository(clones.clone, remote, "main", clones.environment).fetch()
    assert head == clones.git(clones.remote, "rev-parse", "main").strip()
    assert any(b"remote-http" in line for line in Guarded.seen)
    mine = [line for line in Guarded.seen if served.encode() in line]
    assert mine
    assert not [line for line in mine if b"p%40ss" in line or PASSWORD.encode() in line]


@pytest.mark.parametrize(
    "remote",
    ["origin", "../x.git", "git@example.org:x.git", "ssh://me@example.org/x", "https://example.org/x", "http://["],
)
def test_a_remote_without_a_password_is_given_as_it_is(remote: str) -> None:
    assert address_of(remote) == type(address_of(remote))(remote)
