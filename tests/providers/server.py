"""A provider of our own: a real HTTP process with a memory, on disk, of what it was asked and what it was submitted.

    python -m tests.providers.server DIRECTORY        prints its URL and serves until it is ended

    POST   /jobs               the body may hold anything; 201, the job and its URLs
    GET    /jobs/ID            the job; outputs once it has succeeded
    GET    /jobs/ID/result     its outputs alone
    POST   /jobs/ID/cancel     also DELETE /jobs/ID
    GET    /files/ID/NAME?v=N  what it has made

    PUT    /control/provider   what kind of a provider it is from now on (script.Provider)
    POST   /control/rules      one rule more (script.Rule); DELETE: none any more
    GET    /control/jobs       all jobs (script.Submitted), oldest first
    GET    /control/requests   all requests (script.Request) but those of the control

``remote.py`` is the other end of the control. The memory is ``jobs.jsonl`` (the last line of a job counts) and
``requests.jsonl``; a server that is started in the same directory remembers all of it.
"""

import hashlib
import itertools
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from tests.providers.script import Provider, Request, Rule, Submitted

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close by a reset."""


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    headers: dict[str, str] = {}


def as_json(status: int, value: Any) -> Answer:
    return Answer(status, msgspec.json.encode(value), {"Content-Type": "application/json"})


def content_of(job_id: str, name: str, size: int) -> bytes:
    """The file of that name which a job makes: the same whenever it is asked for."""
    seed = hashlib.sha256(f"{job_id}/{name}".encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]


class Memory:
    """All that the server knows. Its lock is held while a request is judged, never while one is answered."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._jobs = {job.job_id: job for job in _read(directory / "jobs.jsonl", Submitted)}
        self._requests = list(_read(directory / "requests.jsonl", Request))
        self._jobs_file = (directory / "jobs.jsonl").open("ab", buffering=0)
        self._requests_file = (directory / "requests.jsonl").open("ab", buffering=0)
        self._rules: list[Rule] = []
        self._met: Counter[int] = Counter()
        self._numbers = itertools.count(len(self._jobs) + 1)
        self.provider = Provider()

    def close(self) -> None:
        self._jobs_file.close()
        self._requests_file.close()

    def judge(self, request: Request, base: str) -> tuple[Answer, Rule | None]:
        """What the provider answers, and the rule that means this request."""
        with self._lock:
            self._requests.append(request)
            self._requests_file.write(msgspec.json.encode(request) + b"\n")
            rule = self._rule_for(request)
            job = self._jobs.get(request.job or "")
            if rule is not None and rule.forget and job is not None:
                job.forgotten = True
            if rule is None or rule.is_accepted:
                answer = self._act(request, job, rule, base)
            else:
                answer = as_json(rule.status or 500, {"detail": "refused"})
        return answer if rule is None else _changed(answer, rule, base), rule

    def control(self, method: str, what: str, body: bytes) -> Answer:
        with self._lock:
            match method, what:
                case "PUT", "provider":
                    self.provider = msgspec.json.decode(body, type=Provider)
                case "POST", "rules":
                    self._rules.append(msgspec.json.decode(body, type=Rule))
                case "DELETE", "rules":
                    self._rules.clear()
                    self._met.clear()
                case "GET", "jobs":
                    return as_json(200, list(self._jobs.values()))
                case "GET", "requests":
                    return as_json(200, self._requests)
                case _:
                    return as_json(404, {"detail": "no such control"})
        return as_json(200, {})

    def _rule_for(self, request: Request) -> Rule | None:
        for number, rule in enumerate(self._rules):
            if not self._means(rule, request):
                continue
            self._met[number] += 1
            met = self._met[number] - rule.skip
            if met > 0 and (rule.times is None or met <= rule.times):
                return rule
        return None

    def _means(self, rule: Rule, request: Request) -> bool:
        if rule.on not in (request.what, f"{request.method} {request.path}"):
            return False
        if rule.job is not None and rule.job != request.job:
            return False
        if rule.match is None:
            return True
        job = self._jobs.get(request.job or "")
        return rule.match in (request.body if job is None else json.dumps(job.body))

    def _act(self, request: Request, job: Submitted | None, rule: Rule | None, base: str) -> Answer:
        if self.provider.secret and request.what != "download" and not self._is_authorized(request):
            return as_json(401, {"detail": f"not authorized: {request.headers.get('authorization')}"})
        if request.what == "submit":
            return self._submit(request, base)
        if request.what == "other":
            return as_json(404, {"detail": "no such page"})
        if job is None or job.forgotten:
            return as_json(404, {"detail": "no such job"})
        match request.what:
            case "poll":
                return self._poll(job, rule, base)
            case "result":
                return as_json(200, self._made(job, base))
            case "cancel":
                return self._cancel(job)
            case _:
                return self._file(job, request)

    def _is_authorized(self, request: Request) -> bool:
        return (self.provider.secret or "") in request.headers.get("authorization", "")

    def _submit(self, request: Request, base: str) -> Answer:
        body = _parsed(request.body)
        key = request.headers.get("idempotency-key")
        own_id = body.get("submission_id") if self.provider.own_ids and isinstance(body, dict) else None
        if self.provider.idempotent and key is not None:
            for job in self._jobs.values():
                if job.key == key:
                    return as_json(200, self._shown(job, "queued", base))
        if own_id in self._jobs:
            return as_json(409, {"detail": f"there is a job {own_id} already"})
        job = Submitted(
            job_id=own_id or f"job-{next(self._numbers)}",
            at=request.at,
            body=body,
            headers=request.headers,
            course=self.provider.course,
            key=key,
        )
        self._remember(job)
        return as_json(201, self._shown(job, "queued", base))

    def _poll(self, job: Submitted, rule: Rule | None, base: str) -> Answer:
        job.polls += 1
        self._remember(job)
        if job.polls <= self.provider.hidden:
            return as_json(404, {"detail": "no such job yet"})
        word = rule.word if rule is not None and rule.word else self._word(job)
        shown = self._shown(job, word, base)
        return as_json(200, shown | self._made(job, base) if self._has_succeeded(job) else shown)

    def _cancel(self, job: Submitted) -> Answer:
        ended = self._word(job) not in job.course.before
        job.cancels += 1
        if ended and self.provider.cancel_deletes:
            job.forgotten = True
        job.cancelled = job.cancelled or not ended
        self._remember(job)
        return as_json(200, {"id": job.job_id})

    def _file(self, job: Submitted, request: Request) -> Answer:
        url = urlsplit(request.path)
        name = url.path.rsplit("/", 1)[-1]
        version = int(parse_qs(url.query).get("v", ["0"])[0])
        if name not in self._names(job):
            return as_json(404, {"detail": "no such file"})
        if version <= job.course.expired:
            return as_json(403, {"detail": "this URL has expired"})
        return Answer(200, content_of(job.job_id, name, job.course.size), {"Content-Type": job.course.type})

    def _word(self, job: Submitted) -> str:
        course = job.course
        if job.cancelled:
            return "cancelled"
        over = job.polls >= course.polls if course.seconds is None else time.time() - job.at >= course.seconds
        return course.end if over else course.before[min(job.polls, len(course.before)) - 1]

    def _has_succeeded(self, job: Submitted) -> bool:
        return self._word(job) == job.course.end and job.course.error is None

    def _names(self, job: Submitted) -> tuple[str, ...]:
        return (*job.course.outputs, *([job.course.thumbnail] if job.course.thumbnail else []))

    def _shown(self, job: Submitted, word: str, base: str) -> dict[str, Any]:
        own = f"{base}/jobs/{job.job_id}"
        return {
            "id": job.job_id,
            "status": word,
            "progress": min(100, job.polls * 100 // max(job.course.polls, 1)),
            "error": job.course.error if word == job.course.end else None,
            "urls": {"get": own, "result": f"{own}/result", "cancel": f"{own}/cancel"},
        }

    def _made(self, job: Submitted, base: str) -> dict[str, Any]:
        """What the job has made, under fresh URLs."""
        urls = {}
        for name in self._names(job):
            job.urls[name] = job.urls.get(name, 0) + 1
            urls[name] = f"{base}/files/{job.job_id}/{name}?v={job.urls[name]}"
        self._remember(job)
        return {
            "outputs": [{"url": urls[name]} for name in job.course.outputs],
            "thumbnail_url": urls.get(job.course.thumbnail or ""),
        }

    def _remember(self, job: Submitted) -> None:
        self._jobs[job.job_id] = job
        self._jobs_file.write(msgspec.json.encode(job) + b"\n")


def _read(path: Path, kind: type[Any]) -> list[Any]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=kind) for line in lines]


def _parsed(body: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


def _changed(answer: Answer, rule: Rule, base: str) -> Answer:
    body, headers = answer.body, answer.headers
    if rule.body is not None:
        text = rule.body if isinstance(rule.body, str) else msgspec.json.encode(rule.body).decode()
        body = text.replace("{base}", base).encode()
        headers = headers | ({} if isinstance(rule.body, str) else {"Content-Type": "application/json"})
    given = {name: value.replace("{base}", base) for name, value in rule.headers.items()}
    return Answer(rule.status or answer.status, body, headers | given)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    memory: Memory
    server: "Server"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            # Whoever sent it was killed in the midst of it: this is no request.
            self.close_connection = True
            return
        if self.path.startswith("/control/"):
            self._send(self.memory.control(self.command, self.path.removeprefix("/control/"), body), None)
            return
        answer, rule = self.memory.judge(self._request(body), self.server.url)
        if self._what()[0] != "download":
            time.sleep(self.memory.provider.latency)
        self._misbehave(answer, rule) if rule is not None else self._send(answer, None)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _request(self, body: bytes) -> Request:
        what, job = self._what()
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(
            at=time.time(),
            method=self.command,
            path=self.path,
            headers=headers,
            body=body.decode(errors="replace"),
            what=what,
            job=job,
        )

    def _what(self) -> tuple[str, str | None]:
        match self.command, *urlsplit(self.path).path.strip("/").split("/"):
            case "POST", "jobs":
                return "submit", None
            case "GET", "jobs", job:
                return "poll", job
            case "GET", "jobs", job, "result":
                return "result", job
            case ("POST" | "PUT", "jobs", job, "cancel") | ("DELETE", "jobs", job):
                return "cancel", job
            case "GET", "files", job, _:
                return "download", job
            case _:
                return "other", None

    def _misbehave(self, answer: Answer, rule: Rule) -> None:
        self.server.stopping.wait(rule.delay)
        if rule.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if rule.vanish or rule.reset:
            self.close_connection = True
            self.connection.close()
        else:
            self._send(answer, rule)

    def _send(self, answer: Answer, rule: Rule | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if rule is not None and rule.endless:
            self.close_connection = True
            self.end_headers()
            while not self.server.stopping.is_set():
                self.wfile.write(bytes(65536))
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if rule is not None and rule.drip:
            for byte in answer.body:
                self.wfile.write(bytes([byte]))
                if self.server.stopping.wait(rule.drip):
                    return
        elif rule is not None and rule.truncate is not None:
            self.close_connection = True
            self.wfile.write(answer.body[: rule.truncate])
        else:
            self.wfile.write(answer.body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, directory: Path, tls: ssl.SSLContext | None = None) -> None:
        self.stopping = threading.Event()
        self.memory = Memory(directory)
        handler = type("Handler", (Handler,), {"memory": self.memory})
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
            self.url = f"https://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (OSError, ValueError)):  # the client has gone away
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        self.stopping.set()
        super().server_close()
        self.memory.close()


def main() -> None:
    server = Server(Path(sys.argv[1]))
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
