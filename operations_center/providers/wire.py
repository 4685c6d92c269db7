"""Requests to a provider, with an end: in time, in size, and in where they may go.

The time-outs of an HTTP client are for single reads, so an answer that drips takes for ever. Here the network itself
keeps to the request's deadline: resolving the name, connecting, each read and each write share what is left of it.
It also knows whether any byte of a request may have left, which decides between certain and in doubt.

Importing this module imports httpx, which is slow: only what sends a request does so.
"""

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpcore
import httpx

from operations_center.providers.addresses import Address, literal_address
from operations_center.providers.coding import Undecodable, codings_of, decoded

USER_AGENT = "operations-center"
KEPT_CONNECTIONS = 20
KEPT_FOR_S = 30.0

LATE_S = 0.5
"""For what has come already when the time is over: this process may have stood still."""

# It tells each URL, and whoever has that of an output has the output.
logging.getLogger("httpx").setLevel(logging.WARNING)

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")

MayConnect = Callable[[str, Address], bool]


@dataclass(slots=True)
class Exchange:
    """One request: until when it may take (monotonic seconds), and whether any of it may have been sent."""

    until: float
    sent: bool = False
    is_late: bool = False

    def left(self, timed_out: type[Exception]) -> float:
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise timed_out("it took too long")
        return seconds

    def left_to_read(self) -> float:
        if not self.is_late and time.monotonic() >= self.until:
            self.is_late, self.until = True, time.monotonic() + LATE_S
        return self.left(httpcore.ReadTimeout)


class NoAnswer(Exception):
    """There is no answer, or no whole one. ``sent``: the request may have arrived."""

    def __init__(self, reason: str, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class TooLong(NoAnswer):
    """The answer has more bytes than it may have."""


class Forbidden(NoAnswer):
    """The name leads to where nothing may be asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The beginning of an answer; header names are in lower case. The body is read as it comes, as it was sent."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes] = field(repr=False)

    def body(self, largest: int) -> bytes:
        """Without the codings that it has, where they can be taken off.

        Raises NoAnswer: TooLong when it is larger than so many bytes, with or without them.
        """
        body, codings = _all_of(self.chunks, largest), codings_of(self.headers.get("content-encoding", ""))
        if not codings:
            return body
        try:
            return _all_of(decoded(iter([body]), codings), largest)
        except Undecodable:
            # It may be called what it is not.
            return body


def _all_of(chunks: Iterator[bytes], largest: int) -> bytes:
    read = bytearray()
    for chunk in chunks:
        read += chunk
        if len(read) > largest:
            raise TooLong(f"the answer is larger than {largest} bytes", sent=True)
    return bytes(read)


class Wire:
    """Connections of one backend. Threads may share it; processes may not, so it is made after a fork.

    ``may_connect`` is asked for each address that a name leads to. No proxy of the environment is used, because it
    would connect in our place, and no ``.netrc``; certificates are those of ``SSL_CERT_FILE`` or certifi's. No cookie
    is kept and no redirect is followed.
    """

    def __init__(self, may_connect: MayConnect) -> None:
        """Raises NoAnswer where the certificates that are to be trusted cannot be read."""
        self._current = threading.local()
        network = _Network(may_connect, lambda: self._current.exchange)
        trusted = _trusted()
        self._kept = _client(network, trusted, KEPT_CONNECTIONS)
        # A connection that was kept may be closed by the other end at any moment: whatever must not be in doubt
        # without need goes over a new one.
        self._new = _client(network, trusted, 0)

    @contextmanager
    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        seconds: float,
        content: bytes | None = None,
        new_connection: bool = False,
    ) -> Iterator[Answer]:
        """The answer, of which all must be read within ``seconds`` from now. Raises NoAnswer, also while it is read."""
        exchange = Exchange(time.monotonic() + seconds)
        self._current.exchange = exchange
        client = self._new if new_connection else self._kept
        try:
            request = client.build_request(method, url, headers=dict(headers), content=content)
            response = client.send(request, stream=True)
            try:
                read = {name.lower(): value for name, value in response.headers.items()}
                yield Answer(response.status_code, read, response.iter_raw())
            finally:
                response.close()
        except _Refused as error:
            raise Forbidden(str(error), sent=False) from None
        except httpcore.TimeoutException:
            raise NoAnswer("there was no whole answer in time", exchange.sent) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise NoAnswer(_reason(error), exchange.sent) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError, RuntimeError) as error:
            raise NoAnswer(_reason(error), exchange.sent) from None

    def close(self) -> None:
        self._kept.close()
        self._new.close()


def _trusted() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except (OSError, ValueError) as error:
        named = " and ".join(f"{name} ({os.environ[name]})" for name in _CERTIFICATES if name in os.environ)
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        reason = f"the certificates of {named or 'certifi'} cannot be read: {why}"
        raise NoAnswer(reason, sent=False) from None


def _client(network: httpcore.NetworkBackend, trusted: ssl.SSLContext, kept: int) -> httpx.Client:
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    client = httpx.Client(transport=_Transport(network, trusted, kept), headers=headers, trust_env=False)
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return client


class _Transport(httpx.BaseTransport):
    """httpx's own, but for the network below it, which httpx has no parameter for."""

    def __init__(self, network: httpcore.NetworkBackend, trusted: ssl.SSLContext, kept: int) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=trusted,
            max_connections=None,
            max_keepalive_connections=kept,
            keepalive_expiry=KEPT_FOR_S,
            network_backend=network,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        assert isinstance(request.stream, httpx.SyncByteStream)
        answer = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
            )
        )
        assert isinstance(answer.stream, Iterable)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _Refused(httpcore.ConnectError):
    pass


class _Network(httpcore.NetworkBackend):
    def __init__(self, may_connect: MayConnect, current: Callable[[], Exchange]) -> None:
        self._may_connect = may_connect
        self._current = current
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        exchange = self._current()
        found = _resolve(host, port, exchange.left(httpcore.ConnectTimeout))
        allowed = [address for address in found if self._may_connect(host, address)]
        if not allowed:
            raise _Refused(f"{host} leads into a private network, and is not itself in output_hosts")
        for tried, address in enumerate(allowed, start=1):
            share = exchange.left(httpcore.ConnectTimeout) / (len(allowed) - tried + 1)
            try:
                return _Stream(self._sockets.connect_tcp(str(address), port, share), self._current)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if tried == len(allowed):
                    raise
        raise AssertionError("unreachable")


class _Stream(httpcore.NetworkStream):
    """A connection that keeps to the deadline of whichever request uses it just now."""

    def __init__(self, stream: httpcore.NetworkStream, current: Callable[[], Exchange]) -> None:
        self._stream = stream
        self._current = current

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._current().left_to_read())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        exchange = self._current()
        connection: socket.socket = self._stream.get_extra_info("socket")
        left = memoryview(buffer)
        try:
            while left:
                connection.settimeout(exchange.left(httpcore.WriteTimeout))
                exchange.sent = True
                left = left[connection.send(left) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = self._current().left(httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._current)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


def _resolve(host: str, port: int, seconds: float) -> list[Address]:
    """The addresses of a host. The system's resolver cannot be told to hurry, so it is left behind if it is slow."""
    literal = literal_address(host)
    if literal is not None:
        return [literal]
    answers: list[Any] = []

    def resolve() -> None:
        try:
            answers.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.append(error)

    thread = threading.Thread(target=resolve, name="resolve", daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise httpcore.ConnectTimeout("the name was not resolved in time")
    if isinstance(answers[0], Exception):
        raise httpcore.ConnectError(f"{host} cannot be resolved: {answers[0]}")
    addresses = (literal_address(entry[4][0].partition("%")[0]) for entry in answers[0])
    return list(dict.fromkeys(address for address in addresses if address is not None))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
