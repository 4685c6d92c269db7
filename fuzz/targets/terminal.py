"""Whatever a text holds: a terminal obeys nothing of it."""

import unicodedata

import hypothesis.strategies as st

from fuzz.sandbox import Sandbox
from operations_center.text import printable

OBEYED = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""General categories of Unicode that no printed text may hold."""

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class HostileText:
    def __init__(self, _sandbox: Sandbox) -> None:
        return

    @property
    def inputs(self) -> st.SearchStrategy[str]:
        anything = st.characters(codec=None, exclude_categories=())
        hostile = st.sampled_from(
            ["\x1b]0;x\x07", "\x9b1m", "\x1b[2J", "\u202e", "\x00", "\r", "\ud800", "\u2028", "\U000e0041"]
        )
        return st.lists(st.one_of(anything, hostile), max_size=40).map("".join)

    def attempt(self, value: str) -> None:
        shown = printable(value)
        shown.encode()
        for character in shown:
            assert unicodedata.category(character) not in OBEYED and character not in BIDI, (value, shown)

    def close(self) -> None:
        return
