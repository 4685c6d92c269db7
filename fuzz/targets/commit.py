"""Whatever git may list of a commit's tree: it is refused by name, or all of it lies below the release's directory."""

import os
import posixpath

import hypothesis.strategies as st

from fuzz.sandbox import Sandbox
from operations_center.releases.steps import Refused
from operations_center.releases.tree import DEEPEST, judge_listing, judge_target, split_entries
from operations_center.text import printable

MODES = (b"100644", b"100755", b"120000", b"160000", b"040000", b"000000", b"777777", b"\x1b")
NAMES = (
    *(b"a", b"A", b"b", b"..", b".", b"", b".git", b".GIT", b"git~1", b"\x1b]0;x\x07", b"\xff", "\u202e".encode()),
    *(b"x" * 300, b"d/" * 100 + b"d", b"link", b"link/below"),
)
TARGETS = (b"a", b"../a", b"../../a", b"/etc/passwd", b"a/../../..", b"", b"\0", b"x" * 5000, b"./../..", b"\xff/..")


class ListedCommit:
    def __init__(self, _sandbox: Sandbox) -> None:
        return

    @property
    def inputs(self) -> st.SearchStrategy[tuple[bytes, bytes]]:
        name = st.one_of(st.sampled_from(NAMES), st.binary(max_size=8))
        path = st.lists(name, min_size=1, max_size=4).map(b"/".join)
        size = st.sampled_from([b"-", b"0", b"12", b"BAD", b"99999999999999999999", b""])
        entry = st.tuples(st.sampled_from(MODES), size, path).map(
            lambda parts: parts[0] + b" blob " + b"0" * 40 + b" " + parts[1] + b"\t" + parts[2] + b"\0"
        )
        listing = st.one_of(st.lists(entry, max_size=6).map(b"".join), st.binary(max_size=100))
        return st.tuples(listing, st.one_of(st.sampled_from(TARGETS), st.binary(max_size=20)))

    def attempt(self, value: tuple[bytes, bytes]) -> None:
        listing, target = value
        entries = list(split_entries(listing))
        try:
            links = judge_listing(entries)
            for link in links:
                judge_target(link, target)
        except Refused as error:
            assert printable(str(error)) == str(error), error
            return
        for entry in entries:
            path = entry.partition(b"\t")[2]
            assert _is_below(path) and path.count(b"/") < DEEPEST, path
        for link in links:
            assert _is_below(posixpath.join(posixpath.dirname(link.path), target)), (link, target)

    def close(self) -> None:
        return


def _is_below(path: bytes) -> bool:
    """Whether a path, taken as it is written, stays below the directory that it is relative to."""
    resolved = posixpath.normpath(os.fsdecode(path))
    return not resolved.startswith(("/", "../")) and resolved != ".."
