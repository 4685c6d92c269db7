"""What a job has made arrives whole, under a name of ours, from where it may come from, or not at all."""

import gzip
import hashlib
import ipaddress
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from operations_center.providers import Artifact, Kind, Missed, Output, downloads
from operations_center.providers.addresses import Reach, is_public, is_weaker, leads_here
from operations_center.providers.coding import decoded
from tests.providers.conftest import SECRET, SETTINGS, Client, read_settings
from tests.providers.remote import Remote
from tests.providers.script import Course
from tests.providers.server import content_of

NAME = "output-1.mp4"


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    directory = tmp_path / "artifacts"
    directory.mkdir()
    return directory


def made(remote: Remote, host: str | None = None, **course: Any) -> Output:
    """The output of a job that has succeeded, at this host."""
    remote.goes(Course(**course))
    remote.post({})
    url = f"{host or remote.url}/files/{remote.jobs()[-1].job_id}/film.mp4?v=1"
    return Output(url, NAME, Kind.OUTPUT)


def place_of(remote: Remote) -> str:
    """The other name of the provider's host, with its port, as an entry of ``output_hosts``."""
    return remote.other_host.removeprefix("http://")


def missed(got: Artifact | Missed) -> Missed:
    assert isinstance(got, Missed), got
    return got


def test_a_file_arrives_whole_and_nothing_else_is_left(remote: Remote, client: Client, artifacts: Path) -> None:
    (artifacts / NAME).write_text("an earlier one")
    (artifacts / f".{NAME}.12345678.part").write_text("of a killed process")
    (artifacts / ".output-2.png.12345678.part").write_text("of a killed process")
    got = client().download(made(remote, size=100_000), artifacts)
    content = content_of("job-1", "film.mp4", 100_000)
    assert got == Artifact(NAME, Kind.OUTPUT, 100_000, hashlib.sha256(content).hexdigest())
    assert (artifacts / NAME).read_bytes() == content
    assert os.listdir(artifacts) == [NAME]


def test_what_another_process_still_writes_is_left_to_it(remote: Remote, client: Client, artifacts: Path) -> None:
    other = artifacts / f".{NAME}.12345678.part"
    program = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.flock(f, 2); print('x', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(other)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert isinstance(client().download(made(remote), artifacts), Artifact)
        assert sorted(os.listdir(artifacts)) == [other.name, NAME]
        process.kill()


@pytest.mark.parametrize(
    ("effect", "expired", "final"),
    [
        ({"truncate": 100}, False, False),
        ({"vanish": True}, False, False),
        ({"reset": True}, False, False),
        ({"status": 500}, False, False),
        ({"status": 429}, False, False),
        ({"status": 400}, True, False),
        ({"status": 403}, True, False),
        ({"status": 404}, True, False),
        ({"status": 410}, True, False),
        ({"status": 405}, False, True),
        ({"status": 206}, False, True),
        ({"status": 302, "headers": {}}, False, True),
        ({"endless": True}, False, True),
        ({"drip": 0.2}, False, False),
    ],
    ids=str,
)
def test_what_goes_wrong_leaves_no_file(
    remote: Remote, client: Client, artifacts: Path, effect: dict[str, Any], expired: bool, final: bool
) -> None:
    output = made(remote, type="text/plain")
    remote.rule("download", **effect)
    within = "500ms" if "drip" in effect else "20s"
    limits = f'max_concurrent = 4\nmax_output_size = "1MiB"\ndownload_timeout = "{within}"'
    got = missed(client(("max_concurrent = 4", limits)).download(output, artifacts))
    assert (got.expired, got.final) == (expired, final)
    assert os.listdir(artifacts) == []


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_an_encoding_that_is_none_is_taken(remote: Remote, client: Client, artifacts: Path, encoding: str) -> None:
    output = made(remote)
    remote.rule("download", headers={"Content-Encoding": encoding})
    assert isinstance(client().download(output, artifacts), Artifact)


def test_a_file_that_is_too_large_is_not_even_begun(remote: Remote, client: Client, artifacts: Path) -> None:
    provider = client(("max_concurrent = 4", 'max_concurrent = 4\nmax_output_size = "999B"'))
    assert missed(provider.download(made(remote, size=1000), artifacts)).final
    assert isinstance(provider.download(made(remote, size=999), artifacts), Artifact)


@pytest.mark.parametrize(
    ("given", "fits"), [("video/mp4; x=y", True), ("Image/PNG", True), ("text/html", False), ("", False)]
)
def test_only_types_that_are_allowed_are_taken(
    remote: Remote, client: Client, artifacts: Path, given: str, fits: bool
) -> None:
    provider = client(("max_concurrent = 4", 'max_concurrent = 4\noutput_types = ["video/*", "image/png"]'))
    got = provider.download(made(remote, type=given), artifacts)
    assert isinstance(got, Artifact) if fits else missed(got).final


def test_the_secret_goes_to_the_api_and_to_nobody_else(remote: Remote, client: Client, artifacts: Path) -> None:
    provider = client(("max_concurrent = 4", f'max_concurrent = 4\noutput_hosts = ["{place_of(remote)}"]'))
    assert isinstance(provider.download(made(remote), artifacts), Artifact)
    assert isinstance(provider.download(made(remote, host=remote.other_host), artifacts), Artifact)
    here, there = remote.requests("download")
    assert here.headers["authorization"] == f"Bearer {SECRET}"
    assert "authorization" not in there.headers


def test_a_redirect_to_an_allowed_host_is_followed_without_the_secret(
    remote: Remote, client: Client, artifacts: Path
) -> None:
    output = made(remote)
    location = output.url.replace("127.0.0.1", "localhost")
    remote.rule("download", times=1, status=302, headers={"Location": location})
    provider = client(("max_concurrent = 4", f'max_concurrent = 4\noutput_hosts = ["{place_of(remote)}"]'))
    assert isinstance(provider.download(output, artifacts), Artifact)
    _, there = remote.requests("download")
    assert there.headers["host"].startswith("localhost:")
    assert "authorization" not in there.headers


def test_a_relative_redirect_stays_on_its_host(remote: Remote, client: Client, artifacts: Path) -> None:
    output = made(remote)
    remote.rule("download", times=1, status=307, headers={"Location": "/files/job-1/film.mp4?v=2"})
    assert isinstance(client().download(output, artifacts), Artifact)


@pytest.mark.parametrize(
    "location", ["{other}/files/job-1/film.mp4", "file:///etc/passwd", "http://[", "ftp://127.0.0.1/"]
)
def test_a_redirect_to_anywhere_else_is_refused(remote: Remote, client: Client, artifacts: Path, location: str) -> None:
    output = made(remote)
    remote.rule("download", times=1, status=302, headers={"Location": location.replace("{other}", remote.other_host)})
    assert missed(client().download(output, artifacts)).final
    assert len(remote.requests("download")) == 1


def test_a_redirect_that_never_ends_is_refused(remote: Remote, client: Client, artifacts: Path) -> None:
    output = made(remote)
    remote.rule("download", status=302, headers={"Location": output.url})
    assert missed(client().download(output, artifacts)).final
    assert len(remote.requests("download")) == 6


@pytest.mark.parametrize(
    "url",
    [
        "{other}/files/job-1/film.mp4",
        "http://user@127.0.0.1:80/x",
        "http://127.0.0.1:80\\@localhost/x",
        "http://127.0.0.1.localhost/x",
        "https://sub.localhost/x",
        "file:///etc/passwd",
        "x",
        "",
    ],
)
def test_a_url_on_no_allowed_host_is_not_asked(remote: Remote, client: Client, artifacts: Path, url: str) -> None:
    output = Output(url.replace("{other}", remote.other_host), NAME, Kind.OUTPUT)
    assert missed(client().download(output, artifacts)).final
    assert remote.requests() == []


def test_a_directory_that_cannot_be_written_is_told(remote: Remote, client: Client, tmp_path: Path) -> None:
    got = missed(client().download(made(remote), tmp_path / "not-there"))
    assert not got.final
    assert "No such file" in got.reason


def test_a_url_that_has_expired_is_told_from_one_that_is_wrong(remote: Remote, client: Client, artifacts: Path) -> None:
    remote.goes(Course(expired=1))
    remote.post({})
    provider = client()
    output = Output(f"{remote.url}/files/job-1/film.mp4?v=1", NAME, Kind.OUTPUT)
    assert missed(provider.download(output, artifacts)).expired
    fresh = Output(f"{remote.url}/files/job-1/film.mp4?v=2", NAME, Kind.OUTPUT)
    assert isinstance(provider.download(fresh, artifacts), Artifact)


def test_what_is_being_downloaded_is_inherited_by_no_child(remote: Remote, client: Client, artifacts: Path) -> None:
    output = made(remote, size=50)
    remote.rule("download", drip=0.01)
    got: list[Artifact | Missed] = []
    thread = threading.Thread(target=lambda: got.append(client().download(output, artifacts)))
    thread.start()
    while thread.is_alive() and not (begun := open_below(artifacts)):
        time.sleep(0.001)
    assert not any(begun.values())
    thread.join()
    assert isinstance(got[0], Artifact)


def open_below(directory: Path) -> dict[int, bool]:
    """The descriptors of this process that are open on files in a directory, and whether a child inherits them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if Path(os.readlink(f"/proc/self/fd/{name}")).parent == directory:
                found[int(name)] = os.get_inheritable(int(name))
    return found


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("::10.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("2002:a00:1::1", False),
        ("fec0::1", False),
        ("64:ff9b::5db8:d822", True),
    ],
)
def test_a_name_may_not_lead_into_a_private_network_unless_it_is_listed(
    tmp_path: Path, address: str, public: bool
) -> None:
    text = SETTINGS.format(url="https://api.example.org")
    hosts = 'max_concurrent = 4\noutput_hosts = ["cdn.example.org", "*.example.net"]'
    settings = read_settings(tmp_path / "operations_center.toml", text.replace("max_concurrent = 4", hosts))
    reach, found = Reach(settings), ipaddress.ip_address(address)
    assert is_public(found) is public
    assert reach.may_connect("a.example.net", found) is public
    assert reach.may_connect("CDN.example.org.", found) is not leads_here(found)
    assert reach.may_connect("api.example.org", found)
    assert not reach.may_connect("example.net", found)
    assert not reach.may_connect("evil.org", found)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.example.org/x", True),
        ("https://API.example.org:443/x", True),
        ("https://API.example.org:444/x", False),
        ("http://api.example.org/x", False),
        ("http://api.example.org:443/x", False),
        ("https://cdn.example.org/x", True),
        ("https://cdn.example.org:444/x", False),
        ("https://files.example.org:8443/x", True),
        ("https://files.example.org/x", False),
        ("http://files.example.org:8443/x", False),
        ("https://a.b.example.com:8443/x", True),
        ("https://a.b.example.com/x", False),
        ("https://[2606:2800::1]:8443/x", True),
        ("https://[2606:2800::1]/x", False),
        ("https://[2606:2800::2]/x", True),
        ("https://0x7f.1/x", False),
        ("https://2130706433/x", False),
        ("https://cdn.example.org\u3002evil.org/x", False),
        ("https://xn--cdn.example.org@evil.org/x", False),
        ("data:text/plain,x", False),
        ("http://cdn.example.org/x", False),
        ("https://a.b.example.net/x", True),
        ("https://example.net/x", False),
        ("https://notexample.net/x", False),
        ("https://api.example.org.evil.org/x", False),
    ],
)
def test_a_download_is_over_https_from_hosts_that_are_listed(tmp_path: Path, url: str, allowed: bool) -> None:
    text = SETTINGS.format(url="https://api.example.org")
    listed = ["cdn.example.org", "*.example.net", "files.example.org:8443", "*.example.com:8443"]
    listed += ["[2606:2800::1]:8443", "2606:2800::2"]
    hosts = f"max_concurrent = 4\noutput_hosts = {listed}"
    settings = read_settings(tmp_path / "operations_center.toml", text.replace("max_concurrent = 4", hosts))
    assert (Reach(settings).obstacle(url) is None) is allowed


def test_another_port_of_the_apis_host_is_not_asked(remote: Remote, client: Client, artifacts: Path) -> None:
    """Behind it may be any service of the machine."""
    output = made(remote)
    with socket.create_server(("127.0.0.1", 0)) as local:
        url = f"http://127.0.0.1:{local.getsockname()[1]}/x"
        assert missed(client().download(Output(url, NAME, Kind.OUTPUT), artifacts)).final
        remote.rule("download", status=302, headers={"Location": url})
        assert missed(client().download(output, artifacts)).final
        remote.rule("poll", body={"status": "succeeded", "outputs": [{"url": url}]})
        local.setblocking(False)
        with pytest.raises(BlockingIOError):
            local.accept()


@pytest.mark.parametrize(
    ("url", "before", "weaker"),
    [
        ("http://a/x", "https://a/x", True),
        ("https://a/x", "https://b/x", False),
        ("https://a/x", "http://a/x", False),
        ("http://a/x", "http://b/x", False),
    ],
)
def test_redirect_never_leaves_https(url: str, before: str, weaker: bool) -> None:
    assert is_weaker(url, before) is weaker


def test_name_that_leads_to_this_machine_is_connected_to_only_if_it_is_called_so(tmp_path: Path) -> None:
    text = SETTINGS.format(url="https://api.example.org")
    listed = ["cdn.example.org", "localhost:8443", "[::1]:8443", "127.0.0.2:8443"]
    text = text.replace("max_concurrent = 4", f"max_concurrent = 4\noutput_hosts = {listed}")
    reach = Reach(read_settings(tmp_path / "operations_center.toml", text))
    for here in (
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "0.0.0.0",
        "169.254.169.254",
    ):
        assert not reach.may_connect("cdn.example.org", ipaddress.ip_address(here)), here
    assert reach.may_connect("cdn.example.org", ipaddress.ip_address("10.0.0.1"))
    assert reach.may_connect("localhost", ipaddress.ip_address("127.0.0.1"))
    assert reach.may_connect("::1", ipaddress.ip_address("::1"))
    assert reach.may_connect("127.0.0.2", ipaddress.ip_address("127.0.0.2"))


def test_what_a_server_says_of_its_file_never_shows_the_secret(remote: Remote, client: Client, artifacts: Path) -> None:
    output = made(remote)
    remote.rule("download", headers={"Content-Type": f"text/{SECRET}", "Content-Encoding": SECRET}, times=1)
    got = client(("max_concurrent = 4", 'max_concurrent = 4\noutput_types = ["video/*"]')).download(output, artifacts)
    assert "***" in missed(got).reason
    assert SECRET not in missed(got).reason
    remote.rule("download", headers={"Content-Encoding": SECRET})
    stored = client().download(output, artifacts)
    assert isinstance(stored, Artifact)
    assert SECRET not in str(stored)


# Codings that were not asked for


def chunks_of(content: bytes, size: int = 7) -> Iterator[bytes]:
    return iter([content[begin : begin + size] for begin in range(0, len(content), size)])


def saved(artifacts: Path, content: bytes, *codings: str, largest: int = 1 << 20) -> Artifact:
    output = Output("https://x/y", NAME, Kind.OUTPUT)
    got = downloads.save(chunks_of(content), output, artifacts, largest, codings)
    assert isinstance(got, Artifact), got
    assert os.listdir(artifacts) == [NAME]
    stored = (artifacts / NAME).read_bytes()
    assert (got.size, got.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    return got


RAW = zlib.compressobj(wbits=-15)
TEXT = b"as it was" * 100
ENCODED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "gzip": (gzip.compress(TEXT), ("gzip",)),
    "members": (gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]) + b"\0" * 20, ("gzip",)),
    "zlib": (zlib.compress(TEXT), ("deflate",)),
    "raw": (RAW.compress(TEXT) + RAW.flush(), ("deflate",)),
    "twice": (zlib.compress(gzip.compress(TEXT)), ("gzip", "deflate")),
}


@pytest.mark.parametrize("name", ENCODED)
def test_file_with_a_coding_that_was_not_asked_for_is_decoded(artifacts: Path, name: str) -> None:
    content, codings = ENCODED[name]
    assert saved(artifacts, content, *codings).note is None
    assert (artifacts / NAME).read_bytes() == TEXT


def test_members_of_a_gzip_that_come_one_by_one_are_all_decoded() -> None:
    members = [gzip.compress(b"one"), b"\0\0", gzip.compress(b" two"), b"\0", b"\0"]
    assert b"".join(decoded(iter(members), ("gzip",))) == b"one two"


def test_a_gzip_of_many_empty_members_is_decoded_in_no_more_than_its_size() -> None:
    began = time.process_time()
    assert b"".join(decoded(iter([gzip.compress(b"") * 200_000]), ("gzip",))) == b""
    # With a copy of the rest for each of them it is a minute.
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("content", "codings", "said"),
    [
        (b"anything", ("br",), "encoded as br: not decoded"),
        (gzip.compress(TEXT), ("gzip", "br"), "encoded as gzip, br: not decoded"),
        (gzip.compress(TEXT), ("gzip",) * 3, "not decoded"),
        (b"a film that is called gzip", ("gzip",), "damaged"),
        (gzip.compress(TEXT)[:-5], ("gzip",), "it ends too early"),
        (b"", ("gzip",), "it ends too early"),
        (gzip.compress(bytes(8 << 20)), ("gzip",), "it would be larger than 1048576 bytes"),
        (gzip.compress(gzip.compress(bytes(64 << 20))), ("gzip", "gzip"), "it would be larger than 1048576 bytes"),
    ],
    ids=["unknown", "one unknown", "three", "none at all", "torn", "empty", "bomb", "bomb in a bomb"],
)
def test_file_that_cannot_be_decoded_is_kept_as_it_came_with_a_note(
    artifacts: Path, content: bytes, codings: tuple[str, ...], said: str
) -> None:
    assert said in (saved(artifacts, content, *codings).note or "")
    assert (artifacts / NAME).read_bytes() == content
