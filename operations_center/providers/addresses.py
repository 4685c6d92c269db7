"""Which addresses a backend may reach, and which of them are given its secret.

What a provider answers is not trusted to say where requests go. A URL in it must name the API's very origin (scheme,
host and port: behind other ports of its host may be anything) or one of ``output_hosts``, at the port that stands there
or else the scheme's own. A name that leads into a private network is followed only if the configuration names that very
host, and to this machine only if it is called so.
"""

import ipaddress
import re
import string
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, urljoin

from operations_center.config import HttpJobSettings
from operations_center.config.placeholders import PLACEHOLDERS, fill

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LONGEST_URL = 8_192

# Plain enough for all parsers to find the same host in it: no user, no backslash, nothing but ASCII.
_PLAIN = re.compile(
    r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:[/?#][\x21-\x7e]*)?", re.IGNORECASE
)
_PORTS = {"http": 80, "https": 443}
_DOTS = re.compile(r"[^?#]*/\.{1,2}(?:[/?#]|\Z)")
_RELATIVE = re.compile(r"\.{0,2}/(?!/)")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
"""All that is handed out of IPv6; outside of it lie old and local ways to write an IPv4 address."""


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class Reach:
    def __init__(self, settings: HttpJobSettings) -> None:
        self._api = frozenset(_origins_of(settings))
        self._hosts = frozenset(origin.host for origin in self._api)
        self._is_plain = any(origin.scheme == "http" for origin in self._api)
        listed = [_split(host) for host in settings.output_hosts]
        self._listed = frozenset(listed)
        self._names = frozenset(host for host, _ in listed if not host.startswith("*."))
        self._suffixes = tuple((host[1:], port) for host, port in listed if host.startswith("*."))

    def is_api(self, url: str) -> bool:
        """Whether a URL is of the API's own origin: only there does the secret go."""
        return origin_of(url) in self._api

    def obstacle(self, url: str) -> str | None:
        """Why nothing is downloaded from a URL; None if it may be."""
        origin = origin_of(url)
        if origin is None:
            return "what should be its URL is none, or has a user in it"
        if origin in self._api:
            return None
        if not self._lists(origin):
            return f"its host {origin.host} at port {origin.port} is not the API's own, and not in output_hosts"
        if origin.scheme != "https" and not (self._is_plain and _is_loopback(origin.host)):
            return f"its URL on {origin.host} is not https"
        return None

    def may_connect(self, host: str, address: Address) -> bool:
        """Asked with the very address that is about to be connected to, so a name cannot change its mind."""
        name = _bare(host)
        if name in self._hosts:
            return True
        if name in self._names:
            return not leads_here(address) or _is_loopback(name) or literal_address(name) is not None
        return any(name.endswith(suffix) for suffix, _ in self._suffixes) and is_public(address)

    def _lists(self, origin: Origin) -> bool:
        wanted = None if origin.port == _PORTS[origin.scheme] else origin.port
        ports = {wanted, origin.port}
        return any((origin.host, port) in self._listed for port in ports) or any(
            origin.host.endswith(suffix) and port in ports for suffix, port in self._suffixes
        )


def is_weaker(url: str, before: str) -> bool:
    """Whether a redirect leaves https."""
    origin, left = origin_of(url), origin_of(before)
    return origin is not None and left is not None and left.scheme == "https" != origin.scheme


def origin_of(url: str) -> Origin | None:
    """None for anything but a plain http or https URL."""
    found = _PLAIN.fullmatch(url) if len(url) <= LONGEST_URL else None
    if found is None:
        return None
    scheme, host, port = found.groups()
    number = int(port) if port else _PORTS[scheme.lower()]
    return Origin(scheme.lower(), _bare(host), number) if number <= 65535 else None


def names_one_page(url: str) -> bool:
    """Whether a template that was filled in leads to where it says; no escape keeps ``..`` from leading elsewhere."""
    return origin_of(url) is not None and not _DOTS.match(url)


def found_at(base: str, text: str) -> str:
    """A URL in the answer from ``base``: as it is, or relative to that if it begins with ``/``, ``./`` or ``../``."""
    url = quote(text[: 2 * LONGEST_URL].strip()[: LONGEST_URL + 1], safe=string.punctuation, errors="surrogatepass")
    return redirected(base, url) if _RELATIVE.match(url) else url


def redirected(base: str, location: str) -> str:
    """Where a redirect leads to; what is no URL stays what it is, and is refused as that."""
    try:
        return urljoin(base, location)
    except ValueError:
        return location


def is_public(address: Address) -> bool:
    """Whether it leads to the internet, and not to this machine or a network around it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST or address.sixtofour is not None:
            return False
    return address.is_global and not address.is_multicast


def leads_here(address: Address) -> bool:
    """Whether it is this machine, or the link that it is on, where clouds tell secrets of a machine."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return leads_here(address.ipv4_mapped)
        if address in _NAT64:
            return leads_here(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None:
            return leads_here(address.sixtofour)
    return address.is_loopback or address.is_link_local or address.is_unspecified


def literal_address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _origins_of(settings: HttpJobSettings) -> Iterator[Origin]:
    values = dict.fromkeys(PLACEHOLDERS, "") | {"base_url": settings.base_url or ""}
    parts = (settings.submit, settings.poll, settings.result, settings.cancel)
    templates = [part.url for part in parts if part is not None and part.url is not None]
    for template in (*templates, "{base_url}"):
        origin = origin_of(fill(template, values))
        if origin is not None:
            yield origin


def _split(entry: str) -> tuple[str, int | None]:
    """An entry of ``output_hosts``: its host, and its port if it names one. IPv6 stands in brackets before a port."""
    host, colon, port = entry.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.endswith("]")):
        return _bare(entry), None
    return _bare(host), int(port)


def _bare(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _is_loopback(host: str) -> bool:
    address = literal_address(host)
    return host == "localhost" if address is None else address.is_loopback
