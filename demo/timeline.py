"""What a person watches: one line for each thing that happens, with its time; tables at the end."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, TextIO

COLOURS = {
    "plain": "",
    "dim": "2",
    "bold": "1",
    "good": "32",
    "bad": "1;31",
    "kill": "1;31",
    "adopt": "1;36",
    "free": "1;35",
    "start": "34",
    "heading": "1;4",
}
SVG_COLOURS = {
    "plain": "#d7dae0",
    "dim": "#7f8591",
    "bold": "#ffffff",
    "good": "#8fd17f",
    "bad": "#ff6b6b",
    "kill": "#ff6b6b",
    "adopt": "#66d9e8",
    "free": "#d6a4f5",
    "start": "#7aa7f0",
    "heading": "#ffffff",
}


class Part(NamedTuple):
    text: str
    style: str = "plain"


Cell = str | Part


class Timeline:
    """Colours on a terminal unless NO_COLOR is set; there, one more line at the bottom says what runs now."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._terminal and not os.environ.get("NO_COLOR")
        self._below = ""
        self._lines: list[list[Part]] = []
        self.began = time.time()

    def happened(self, sign: str, text: str, style: str = "plain", at: float | None = None, more: str = "") -> None:
        """``at``: seconds since the epoch, when that is known better than "now"."""
        offset = (time.time() if at is None else at) - self.began
        self.say(
            Part(f"{offset:+8.2f}s  ", "dim"), Part(f"{sign} {text}", style), Part(f"  {more}" if more else "", "dim")
        )

    def say(self, *parts: Cell, in_picture: bool = True) -> None:
        whole = [part if isinstance(part, Part) else Part(part) for part in parts]
        if in_picture:
            self._lines.append(whole)
        self._clear()
        self._out.write("".join(map(self._painted, whole)).rstrip() + "\n")
        self._draw()

    def show_below(self, text: str) -> None:
        """What goes on now; only where a line can be taken back."""
        if self._terminal:
            self._clear()
            self._below = text[: shutil.get_terminal_size().columns - 1]
            self._draw()

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        cells = [[cell if isinstance(cell, Part) else Part(cell) for cell in row] for row in rows]
        widths = [max([len(heading), *(len(row[i].text) for row in cells)]) for i, heading in enumerate(headings)]
        heading = [Part("  " + h.ljust(w), "dim") for h, w in zip(headings, widths, strict=True)]
        lines = [[Part("  " + c.text.ljust(w), c.style) for c, w in zip(row, widths, strict=True)] for row in cells]
        for line in ([], [Part(title, "bold")], heading, *lines):
            self.say(*line, in_picture=False)

    def write_svg(self, path: Path) -> None:
        """All that was said but the tables, as a picture of a terminal."""
        lines = [[Part("$ scripts/demo", "bold")], *self._lines]
        height = 20 * len(lines) + 40
        longest = max(sum(len(part.text) for part in line) for line in lines)
        width = round(longest * 8.05) + 40
        body = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="13">',
            "<title>The output of scripts/demo</title>",
            f'<rect width="{width}" height="{height}" rx="10" fill="#16181d"/>',
        ]
        for number, line in enumerate(lines):
            spans = "".join(
                f'<tspan fill="{SVG_COLOURS[part.style]}">{escape(part.text)}</tspan>' for part in line if part.text
            )
            body.append(f'<text x="20" y="{34 + 20 * number}" xml:space="preserve">{spans}</text>')
        path.write_text("\n".join([*body, "</svg>", ""]))

    def close(self) -> None:
        self._clear()
        self._below = ""

    def _painted(self, part: Part) -> str:
        code = COLOURS[part.style]
        return f"\033[{code}m{part.text}\033[0m" if self._colours and code and part.text else part.text

    def _clear(self) -> None:
        if self._below:
            self._out.write("\r\033[K")

    def _draw(self) -> None:
        self._out.write(self._below)
        self._out.flush()
