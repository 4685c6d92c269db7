"""A test's hold on the Ray cluster that scripts/test-ray has started: what Ray itself says of its jobs."""

import json
import os
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

ADDRESS, TOKEN = "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"
"""Ray's own names for them."""

ANSWER_S = 60.0


class Cluster:
    def __init__(self) -> None:
        parts = urlsplit(os.environ[ADDRESS])
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port = parts.hostname, parts.port

    def jobs(self, mark: str) -> list[dict[str, Any]]:
        """The jobs whose command holds this text."""
        status, body = self.ask("GET", "/api/jobs/", {"Authorization": f"Bearer {os.environ[TOKEN]}"})
        assert status == 200, body
        return [job for job in json.loads(body) if mark in job["entrypoint"]]

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
        connection = HTTPConnection(self.host, self.port, timeout=ANSWER_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
