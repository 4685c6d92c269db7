"""Between a fleet and Ray: passes every request on and remembers it, and keeps a submission back where it is told to.

So a test can kill a watcher at a known moment: before its submission arrives, or before the answer does.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.fleet import PATIENCE_S
from tests.ray.cluster import Cluster

Asked = tuple[str, str]
"""A method and a path."""

SUBMISSION: Asked = ("POST", "/api/jobs/")


@dataclass
class Kept:
    """A submission that is kept back, itself or its answer. ``status`` is Ray's, once it was passed on."""

    is_answer: bool
    arrived: threading.Event = field(default_factory=threading.Event)
    passed_on: threading.Event = field(default_factory=threading.Event)
    may_go: threading.Event = field(default_factory=threading.Event)
    status: int | None = None

    def keep(self) -> None:
        self.arrived.set()
        assert self.may_go.wait(2 * PATIENCE_S), "nobody has let the submission go"

    def let_go(self) -> int:
        """Ray's answer to it."""
        self.may_go.set()
        assert self.passed_on.wait(PATIENCE_S)
        assert self.status is not None
        return self.status


class Relay:
    def __init__(self, cluster: Cluster, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._cluster = cluster
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        self._to_keep: list[Kept] = []
        self._kept: list[Kept] = []

    def keep_next_submission(self) -> Kept:
        return self._keep(Kept(is_answer=False))

    def keep_answer_to_next_submission(self) -> Kept:
        return self._keep(Kept(is_answer=True))

    def asked(self, method: str, ending: str) -> int:
        """How many such requests there were for a path with this ending."""
        with self._lock:
            return sum(1 for each in self._asked if each[0] == method and each[1].endswith(ending))

    def let_all_go(self) -> None:
        with self._lock:
            for kept in self._kept:
                kept.may_go.set()

    def pass_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        with self._lock:
            self._asked.append((method, path))
            kept = self._to_keep.pop(0) if (method, path) == SUBMISSION and self._to_keep else None
        if kept is not None and not kept.is_answer:
            kept.keep()
        status, answer = self._cluster.ask(method, path, headers, body)
        if kept is not None:
            kept.status = status
            kept.passed_on.set()
            if kept.is_answer:
                kept.keep()
        return status, answer

    def _keep(self, kept: Kept) -> Kept:
        with self._lock:
            self._to_keep.append(kept)
            self._kept.append(kept)
        return kept


@contextmanager
def relay_to(cluster: Cluster) -> Iterator[Relay]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kept_out = ("host", "content-length", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in kept_out}
            status, answer = relay.pass_on(self.command, self.path, headers, body)
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except ConnectionError:
                # Whoever has asked was killed.
                self.close_connection = True

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    relay = Relay(cluster, server.server_port)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield relay
    finally:
        relay.let_all_go()
        server.shutdown()
        thread.join()
        server.server_close()
