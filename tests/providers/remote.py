"""A test's hold on the provider's server, in this process or in one of its own."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import msgspec

from tests.providers import script
from tests.providers.script import Course, Provider, Rule, Submitted
from tests.providers.server import Server

ROOT = Path(__file__).resolve().parents[2]


class Remote:
    """``url`` is the API's; the same server answers as another host under ``other_host``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.other_host = url.replace("127.0.0.1", "localhost")
        self._opener = build_opener(ProxyHandler({}))

    def is_now(self, provider: Provider) -> None:
        self._call("PUT", "provider", provider)

    def goes(self, course: Course) -> None:
        """The course of the jobs that are submitted from now on, to a provider that is else as it was at first."""
        self.is_now(Provider(course=course))

    def rule(self, on: str, **effects: Any) -> None:
        self._call("POST", "rules", Rule(on=on, **effects))

    def forget_rules(self) -> None:
        self._call("DELETE", "rules")

    def jobs(self) -> list[Submitted]:
        return msgspec.json.decode(self._call("GET", "jobs"), type=list[Submitted])

    def requests(self, what: str | None = None) -> list[script.Request]:
        found = msgspec.json.decode(self._call("GET", "requests"), type=list[script.Request])
        return [request for request in found if what in (None, request.what)]

    def post(self, body: Any) -> None:
        """Submit a job by other means than those that are tested."""
        data = msgspec.json.encode(body)
        with self._opener.open(Request(f"{self.url}/jobs", data, method="POST"), timeout=30):
            pass

    def _call(self, method: str, what: str, body: msgspec.Struct | None = None) -> bytes:
        data = None if body is None else msgspec.json.encode(body)
        with self._opener.open(Request(f"{self.url}/control/{what}", data, method=method), timeout=30) as answer:
            return bytes(answer.read())


@contextmanager
def provider_thread(directory: Path) -> Iterator[Remote]:
    """A server in this process."""
    server = Server(directory)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield Remote(server.url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def provider_process(directory: Path) -> Iterator[Remote]:
    """A server of its own, which is ended with the test, whatever becomes of those that ask it."""
    command = [sys.executable, "-m", "tests.providers.server", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Remote(process.stdout.readline().strip())
        finally:
            process.kill()
