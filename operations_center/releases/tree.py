"""Whether the files of a commit may be written to the disk. Pure: judged by names, kinds and sizes, before any is.

Whoever may push to the branch decides what a commit holds, and git takes nearly everything: a tree without bottom, a
billion files out of ten objects, a link to ``/etc``, a name that a terminal obeys. The first entry that is not fit ends
the look, so a listing that never ends costs no more than a long one.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from operations_center.releases.steps import Refused
from operations_center.text import on_one_line

MOST_ENTRIES = 200_000
"""Files, links and directories."""

DEEPEST = 64
"""Names in one path; the first is one."""

LONGEST_NAME = 255
LONGEST_PATH = 1_024
"""Bytes. The release's own directory stands before each path, and the system takes 4096 for both."""

LARGEST_FILE = 1 << 30
LARGEST_SUM = 4 << 30
LONGEST_TARGET = 1_024

LARGEST_LISTING = 64 << 20
"""Bytes that git may write to list a tree: room for as many entries as there may be, with the paths of large trees."""

LINK = b"120000"
_SUBMODULE = b"160000"
_DIRECTORY = b"040000"
_FILES = (b"100644", b"100755", b"100664")

# Git for Windows takes the short name of ".git" for it, and so may whatever reads a release.
_OF_GIT = re.compile(rb"\.git[ .]*|git~[0-9]+", re.IGNORECASE)
# Controls, separators of lines, and what changes the direction of writing.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_ENTRY = re.compile(rb"(\d{6}) ([a-z]+) ([0-9a-f]+)(?: +(\d+|-|BAD))?\t(.+)", re.DOTALL)
_IN_WORDS = 100


class Link(NamedTuple):
    """A link that a tree holds; ``object_id`` is the blob with its target."""

    path: bytes
    object_id: str


def judge_listing(listing: Iterable[bytes]) -> list[Link]:
    """Judge what ``git ls-tree -r -t -z -l --full-tree`` says; its links, whose targets are still to be judged.

    ``listing`` are its entries without the NUL between them. Raises Refused, and names the first entry that is not fit.
    """
    links: list[Link] = []
    spellings: dict[str, bytes] = {}
    total = 0
    for number, entry in enumerate(listing, start=1):
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise Refused(f"files: {_spelled(entry)} is nothing that a release may hold")
        mode, object_id, size, path = found[1], found[3], found[4] or b"-", found[5]
        if number > MOST_ENTRIES:
            raise Refused(f"files: there are more than {MOST_ENTRIES} files and directories")
        problem = _problem_of_path(path) or _problem_of_kind(mode, size)
        if problem is not None:
            raise Refused(f"files: {_spelled(path)} {problem}")
        total += int(size) if size.isdigit() else 0
        if total > LARGEST_SUM:
            raise Refused(f"files: they are larger than {LARGEST_SUM >> 30} GiB together")
        folded = _folded(path)
        if folded in spellings:
            raise Refused(f"files: {_spelled(path)} and {_spelled(spellings[folded])} are the same name but for case")
        spellings[folded] = path
        if mode == LINK:
            links.append(Link(path, object_id.decode()))
    return links


def judge_target(link: Link, target: bytes) -> None:
    """Judge where a link leads to. Raises Refused unless that certainly lies in its own tree.

    ``..`` may stand at the beginning only. There it leads out of directories, which are what they are called; behind
    another name it would lead out of wherever that name leads to. So no link leads out, also not through other links.
    """
    names = [name for name in target.split(b"/") if name not in (b"", b".")]
    up = next((number for number, name in enumerate(names) if name != b".."), len(names))
    leads_out = not target or target.startswith(b"/") or b".." in names[up:] or up > link.path.count(b"/")
    if leads_out or len(target) > LONGEST_TARGET or b"\0" in target:
        raise Refused(f"files: the link {_spelled(link.path)} leads out of the commit, to {_spelled(target)}")


def split_entries(listing: bytes) -> Iterator[bytes]:
    """The entries of a listing one by one, without a copy of all of them."""
    begin = 0
    while (end := listing.find(b"\0", begin)) >= 0:
        yield listing[begin:end]
        begin = end + 1


def _problem_of_path(path: bytes) -> str | None:
    names = path.split(b"/")
    if len(names) > DEEPEST:
        return f"is deeper than {DEEPEST} directories"
    if len(path) > LONGEST_PATH:
        return f"is a path of more than {LONGEST_PATH} bytes"
    return next((problem for name in names if (problem := _problem_of_name(name)) is not None), None)


def _problem_of_name(name: bytes) -> str | None:
    if name in (b"", b".", b".."):
        return "is no path below a directory"
    if len(name) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME} bytes"
    if _UNSEEN.search(name.decode(errors="surrogateescape")):
        return "has a name with a character that cannot be seen"
    if _OF_GIT.fullmatch(name):
        return "has a name that git keeps for itself"
    return None


def _problem_of_kind(mode: bytes, size: bytes) -> str | None:
    if mode not in (*_FILES, LINK, _SUBMODULE, _DIRECTORY):
        return f"is of an unknown kind ({mode.decode()})"
    if mode == LINK and size.isdigit() and int(size) > LONGEST_TARGET:
        return f"is a link to a path of more than {LONGEST_TARGET} bytes"
    if size.isdigit() and int(size) > LARGEST_FILE:
        return f"is larger than {LARGEST_FILE >> 30} GiB"
    return None


def _folded(path: bytes) -> str:
    return unicodedata.normalize("NFC", path.decode(errors="surrogateescape")).casefold()


def _spelled(path: bytes) -> str:
    text = path.decode(errors="replace")
    if len(text) > _IN_WORDS:
        text = f"{text[: _IN_WORDS // 2]}…{text[-_IN_WORDS // 2 :]}"
    return on_one_line(text)
