"""Everything that a command prints for people: nothing in it is obeyed by the terminal, and no secret is shown."""

from typing import Any, NamedTuple

import click

from operations_center.text import hide_secrets, printable


class Painted(NamedTuple):
    """Words in a colour of ours; see ``paint``."""

    words: str
    style: dict[str, Any]


def paint(words: object, *, fg: str | None = None, bold: bool = False) -> Painted:
    """Have ``say`` print these words in colour and weight, where the output is a terminal."""
    return Painted(str(words), {"fg": fg, "bold": bold})


def say(*parts: object, err: bool = False, keep: str = "") -> None:
    """Print one line of these parts, side by side. ``keep``: "\\n" and "\\t" are printed as what they are.

    Other characters that a terminal would obey are shown as escapes, so that a title or a reason can neither change the
    screen nor look like a line of ours.
    """
    click.echo("".join(_shown(part, keep) for part in parts), err=err)


def fit(words: str, width: int | None) -> str:
    """Return the words as ``say`` shows them on one line, cut to ``width`` characters."""
    shown = printable(hide_secrets(words))
    return shown if width is None or len(shown) <= width else f"{shown[: width - 1]}…"


def _shown(part: object, keep: str) -> str:
    if not isinstance(part, Painted):
        return printable(hide_secrets(str(part)), keep)
    words = printable(hide_secrets(part.words), keep)
    # click takes them away again where the output is no terminal.
    return click.style(words, **part.style)
