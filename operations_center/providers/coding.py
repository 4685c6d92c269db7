"""Content codings that were not asked for. What can be decoded is, within a bound; the rest stays as it came.

Every request says ``Accept-Encoding: identity``, and some servers and the caches before them compress all the same.
"""

import zlib
from collections.abc import Iterator

_PIECE = 64 * 1024
"""So much is decoded at once, whatever it grows to."""

_BITE = 4 * 1024
"""So much is given to a decoder at once: what it has not used is copied, for each member and each piece."""

_MOST = 2
"""Codings one over the other."""

_GZIP, _ZLIB, _RAW = 31, 15, -15


class Undecodable(Exception):
    """``str(error)`` says why, for a note behind the name of the coding."""


def codings_of(header: str) -> tuple[str, ...]:
    """The codings of a ``Content-Encoding`` header, in the order in which they were applied."""
    words = (word.strip().lower().removeprefix("x-") for word in header.split(","))
    return tuple(word for word in words if word not in ("", "identity"))


def decoded(chunks: Iterator[bytes], codings: tuple[str, ...]) -> Iterator[bytes]:
    """What was encoded, in pieces of at most 64 KiB. Raises Undecodable, also in the middle."""
    if len(codings) > _MOST or not set(codings) <= {"gzip", "deflate"}:
        raise Undecodable("not decoded")
    for coding in reversed(codings):
        chunks = _inflated(chunks, coding)
    return chunks


def _inflated(chunks: Iterator[bytes], coding: str) -> Iterator[bytes]:
    decoder = None
    try:
        for bite in _bites(chunks):
            data = bite
            while data:
                if decoder is not None and decoder.eof:
                    # gzip may have several members one after the other, and zeros behind the last.
                    data = data.lstrip(b"\0") if coding == "gzip" else b""
                    if not data:
                        break
                if decoder is None or decoder.eof:
                    decoder = zlib.decompressobj(_GZIP if coding == "gzip" else _format_of(data))
                yield decoder.decompress(data, _PIECE)
                data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        if decoder is not None:
            yield decoder.flush()
    except zlib.error as error:
        raise Undecodable(f"damaged ({error})") from None
    if decoder is None or not decoder.eof:
        raise Undecodable("damaged (it ends too early)")


def _bites(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for begin in range(0, len(chunk), _BITE):
            yield chunk[begin : begin + _BITE]


def _format_of(data: bytes) -> int:
    """``deflate`` is zlib's format by the standard, and without its head by custom (RFC 9110, 8.4.1.2)."""
    return _ZLIB if data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0 else _RAW
