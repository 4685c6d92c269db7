"""How pieces of output are printed: as the bytes that they are, harmless on a terminal, or as JSON."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO

from operations_center.cli.tail import Lost, Piece
from operations_center.text import printable_with_colours, without_colours
from operations_center.units import format_size

MARKED = "stderr"
"""The stream whose lines begin with its name."""

LONGEST_TEXT = 1024 * 1024
"""Characters of a line that are put together for JSON."""

_MARK = f"[{MARKED}] ".encode()
_NO_COLOUR = b"\x1b[0m"

_UNFINISHED = re.compile(r"(\r|\x1b(\[[0-9;:]{0,40})?)\Z")
"""What the next piece may make an end of line or a colour."""


class Harmless:
    """The pieces of one stream as a terminal may have them: escape sequences are shown, but for colours."""

    def __init__(self, *, colours: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._colours = colours

    def feed(self, data: bytes) -> bytes:
        text = (self._held + self._decoder.decode(data)).replace("\r\n", "\n")
        unfinished = _UNFINISHED.search(text)
        self._held = unfinished[0] if unfinished else ""
        return self._shown(text[: len(text) - len(self._held)])

    def rest(self) -> bytes:
        """Return what was held back for a piece that does not come."""
        return self._shown(self._held + self._decoder.decode(b"", final=True))

    def _shown(self, text: str) -> bytes:
        return printable_with_colours(text if self._colours else without_colours(text), keep="\n\t").encode()


class Raw:
    """The pieces of one stream as they are."""

    def feed(self, data: bytes) -> bytes:
        return data

    def rest(self) -> bytes:
        return b""


class Plain:
    """Prints streams side by side; a line that is not ended is ended where another stream goes on."""

    def __init__(self, out: BinaryIO, form: Callable[[], Harmless | Raw]) -> None:
        self._out = out
        self._form = form
        self._forms: dict[str, Harmless | Raw] = {}
        self._stream: str | None = None
        self._inside_line = False
        self._coloured = False

    def show(self, stream: str, piece: Piece) -> None:
        """Print one piece at once."""
        if isinstance(piece, Lost):
            self._end_line()
            self._write(stream, f"{lost_in_words(piece)}\n".encode())
        else:
            form = self._forms.setdefault(stream, self._form())
            self._show(stream, form.feed(piece))
            self._coloured |= isinstance(form, Harmless) and b"\x1b[" in piece
        self._out.flush()

    def end(self) -> None:
        """Leave a terminal as it was: what was held back is shown, the last line ended, its colours taken back."""
        for stream, form in self._forms.items():
            self._show(stream, form.rest())
        self._end_line()
        self._out.flush()

    def _show(self, stream: str, data: bytes) -> None:
        if data and stream != self._stream:
            self._end_line()
        if data:
            self._write(stream, data)

    def _end_line(self) -> None:
        if self._coloured:
            self._out.write(_NO_COLOUR)
        if self._inside_line:
            self._out.write(b"\n")
        self._coloured = self._inside_line = False

    def _write(self, stream: str, data: bytes) -> None:
        ends = data.endswith(b"\n")
        if stream == MARKED:
            body = data[:-1] if ends else data
            begin = b"" if self._inside_line else _MARK
            data = begin + body.replace(b"\n", b"\n" + _MARK) + (b"\n" if ends else b"")
        self._out.write(data)
        self._stream, self._inside_line = stream, not ends


def at_once(pieces: Iterable[tuple[str, Piece]]) -> Iterator[dict[str, Any]]:
    """One document for each line, or for a part of it that is not ended yet: then ``ended`` is False."""
    texts: dict[str, _Lines] = {}
    for stream, piece in pieces:
        lines = texts.setdefault(stream, _Lines())
        for text in lines.ended_by(piece):
            yield {"stream": stream, "text": text, "ended": True}
        if rest := lines.rest():
            yield {"stream": stream, "text": rest, "ended": False}


def whole_lines(pieces: Iterable[tuple[str, Piece]]) -> Iterator[dict[str, Any]]:
    """One document for each line, of one stream after the other; a line beyond LONGEST_TEXT is broken up."""
    for stream, own in groupby(pieces, key=itemgetter(0)):
        lines = _Lines()
        for _, piece in own:
            for text in lines.ended_by(piece):
                yield {"stream": stream, "text": text}
            if lines.held > LONGEST_TEXT:
                yield {"stream": stream, "text": lines.rest()}
        if rest := lines.end():
            yield {"stream": stream, "text": rest}


class _Lines:
    """The pieces of one stream as lines of text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    @property
    def held(self) -> int:
        return len(self._rest)

    def ended_by(self, piece: Piece) -> list[str]:
        if isinstance(piece, Lost):
            return [*filter(None, [self.rest()]), lost_in_words(piece)]
        *lines, self._rest = (self._rest + self._decoder.decode(piece)).split("\n")
        return lines

    def rest(self) -> str:
        """Return what is not ended, and forget it."""
        rest, self._rest = self._rest, ""
        return rest

    def end(self) -> str:
        """Return what is not ended, and the beginning of a character that nothing follows."""
        return self.rest() + self._decoder.decode(b"", final=True)


def lost_in_words(lost: Lost) -> str:
    return f"[{format_size(lost)} of output were dropped here]"
