"""Requests end in time and go only where they may, whatever the network does."""

import gzip
import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from operations_center.providers import Heard, Ill, InDoubt, Job, Kind, Missed, NotSubmitted, Output, Trouble
from operations_center.providers.http import HttpProvider
from tests.providers.conftest import ORDER, SECRET, SETTINGS, Client, read_settings
from tests.providers.remote import Remote
from tests.providers.server import Server


def test_nothing_is_imported_or_connected_before_the_first_request(tmp_path: Path) -> None:
    path = tmp_path / "operations_center.toml"
    path.write_text(SETTINGS.format(url="http://127.0.0.1:1"))
    program = f"""
import json, sys
from pathlib import Path
from operations_center.config import load_config
from operations_center.providers.http import HttpProvider
provider = HttpProvider(load_config(Path({str(path)!r}), {{}}).backends["video"], {{}})
provider.pause_ms(1, None)
print(json.dumps(sorted({{"httpx", "httpcore", "ssl", "asyncio", "requests"}} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of ``localhost``, which nobody trusts, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [openssl, "req", "-x509", *curve, *name, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@contextmanager
def served_with_tls(directory: Path, certificate: tuple[Path, Path]) -> Iterator[Server]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    server = Server(directory, tls)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def provider_at(tmp_path: Path, url: str) -> HttpProvider:
    settings = read_settings(tmp_path / "operations_center.toml", SETTINGS.format(url=url))
    return HttpProvider(settings, {"VIDEO_API_KEY": SECRET})


def test_a_certificate_is_trusted_only_if_it_is_of_the_host_and_known(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_with_tls(tmp_path / "provider", certificate) as server:
        unknown = provider_at(tmp_path, server.url).submit(ORDER, again=False)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        another = provider_at(tmp_path, server.url.replace("localhost", "127.0.0.1")).submit(ORDER, again=False)
        assert isinstance(unknown, NotSubmitted), unknown
        assert isinstance(another, NotSubmitted), another
        provider = provider_at(tmp_path, server.url)
        assert provider.submit(ORDER, again=False) == Job("job-1")
        assert not hasattr(provider.ask(Job("job-1")), "ill")


def test_a_tls_connection_that_ends_leaves_doubt(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a handshake that never ends nothing is in doubt: no byte of the request has left."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}"
        text = SETTINGS.format(url=url).replace('submit_timeout = "20s"', 'submit_timeout = "300ms"')
        provider = HttpProvider(read_settings(tmp_path / "x.toml", text), {"VIDEO_API_KEY": SECRET})
        assert isinstance(provider.submit(ORDER, again=False), NotSubmitted)
    with served_with_tls(tmp_path / "provider", certificate) as server:
        make_rule(server, "submit", vanish=True)
        assert isinstance(provider_at(tmp_path, server.url).submit(ORDER, again=False), InDoubt)


def make_rule(server: Server, on: str, **effects: Any) -> None:
    body = json.dumps({"on": on, **effects}).encode()
    assert server.memory.control("POST", "rules", body).status == 200


def test_a_resolver_that_hangs_is_left_behind(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, waited_for = threading.Event(), threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        answered.wait(60)
        waited_for.set()
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    provider = client(("http://127.0.0.1:", "http://slow.example.org:"), ('"20s"', '"300ms"'))
    submission = provider.submit(ORDER, again=False)
    assert not waited_for.is_set()
    answered.set()
    assert isinstance(submission, NotSubmitted)
    assert not submission.final


def test_a_name_that_leads_into_a_private_network_is_not_connected_to(
    remote: Remote, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of ours counts the connections: none arrives, though the URL is on an allowed host."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more))
    provider = client(("max_concurrent = 4", 'max_concurrent = 4\noutput_hosts = ["*.example.net"]'))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://cdn.example.net:{listening.getsockname()[1]}/x.mp4"
        got = provider.download(Output(url, "output-1.mp4", Kind.OUTPUT), tmp_path)
        listening.settimeout(0)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert isinstance(got, Missed)
    assert got.final


def test_proxies_of_the_environment_are_not_asked(
    remote: Remote, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert client().submit(ORDER, again=False) == Job("job-1")


def test_no_url_is_logged(remote: Remote, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client().ask(Job("job-1"))
    assert remote.requests()
    assert remote.url not in caplog.text


def test_cookies_are_not_kept(remote: Remote, client: Client) -> None:
    remote.rule("poll", times=1, headers={"Set-Cookie": "session=1"})
    provider = client()
    for _ in range(2):
        provider.ask(Job("job-1"))
    assert all("cookie" not in request.headers for request in remote.requests())


def test_a_server_that_does_not_read_is_not_waited_for(client: Client) -> None:
    """More than the buffers of a connection hold, so that it is the sending that takes too long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        provider = client(("http://127.0.0.1:", f"http://127.0.0.1:{port}/"), ('"20s"', '"1s"'))
        order = type(ORDER)("r", "t", "x", "", "x" * (16 << 20), 1, 1)
        assert isinstance(provider.submit(order, again=False), InDoubt)


def test_many_threads_may_share_a_provider(remote: Remote, client: Client) -> None:
    provider = client()
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(provider.submit(ORDER, again=False))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.job_id for each in got} == {job.job_id for job in remote.jobs()}
    assert len(got) == len({each.job_id for each in got}) == 16


@pytest.mark.parametrize(
    "content", [None, "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_certificates_that_cannot_be_read_leave_nothing_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    file = tmp_path / "certificates.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    provider = provider_at(tmp_path, "https://localhost:9")
    submission = provider.submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted), submission
    assert not submission.final
    assert f"the certificates of SSL_CERT_FILE ({file}) cannot be read" in submission.reason
    heard = provider.ask(Job("job-1"))
    assert isinstance(heard, Trouble)
    assert heard.ill is Ill.FAILING
    assert isinstance(provider.download(Output("https://localhost:9/x", "x", Kind.OUTPUT), tmp_path), Missed)


def test_handshake_that_fails_and_threads_that_cannot_be_had_leave_nothing_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=answer_in_plain, args=(plain,), daemon=True).start()
        url = f"https://localhost:{plain.getsockname()[1]}"
        assert isinstance(provider_at(tmp_path, url).submit(ORDER, again=False), NotSubmitted)

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    submission = provider_at(tmp_path, "http://localhost:9").submit(ORDER, again=False)
    assert isinstance(submission, NotSubmitted)
    assert "can't start new thread" in submission.reason


def answer_in_plain(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity"])
def test_answer_with_a_coding_that_was_not_asked_for_is_read(tmp_path: Path, coding: str) -> None:
    """Else the id of a job that was accepted would be lost, and the submission in doubt."""
    body = json.dumps({"id": "job-7"}).encode()
    encoded = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "identity": body}
    with answering(encoded[coding], coding) as url:
        assert provider_at(tmp_path, url).submit(ORDER, again=False) == Job("job-7")


def test_answer_with_what_is_no_text_raises_nothing(tmp_path: Path) -> None:
    lone = "\ud800"
    body = {"id": f"j{lone}", "status": "succeeded", "outputs": [{"url": f"/{lone}.png"}, {"url": lone}]}
    with answering(json.dumps(body).encode(), "identity") as url:
        heard = provider_at(tmp_path, url).ask(Job("job-7"))
        assert isinstance(heard, Heard)
        assert [output.name for output in heard.outputs] == ["output-1.png", "output-2"]
        assert all(output.url.isascii() for output in heard.outputs)
        assert isinstance(provider_at(tmp_path, url).submit(ORDER, again=False), InDoubt)
    with answering(json.dumps({"status": f"odd{lone}\x1b[31m", "error": lone}).encode(), "identity") as url:
        heard = provider_at(tmp_path, url).ask(Job("job-7"))
    assert isinstance(heard, Heard)
    assert heard.word == "odd\\ud800\\x1b[31m"


def test_answer_that_grows_without_end_is_not_decoded_to_its_end(tmp_path: Path) -> None:
    with answering(gzip.compress(b" " * (64 << 20) + b"{}"), "gzip") as url:
        heard = provider_at(tmp_path, url).ask(Job("job-7"))
    assert isinstance(heard, Trouble)
    assert (heard.ill, heard.reason) == (Ill.UNREADABLE, "the answer is larger than 4194304 bytes")


@contextmanager
def answering(body: bytes, coding: str) -> Iterator[str]:
    """A server that gives this answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(201)
            self.send_header("Content-Encoding", coding)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
