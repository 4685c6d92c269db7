"""Which trees a release may be made of: judged by what git lists, before a file is written."""

import pytest

from operations_center.releases import tree
from operations_center.releases.steps import Refused
from operations_center.releases.tree import Link, judge_listing, judge_target, split_entries

OBJECT = "a" * 40


def entry(path: str | bytes, mode: str = "100644", size: str = "1") -> bytes:
    kind = {"040000": "tree", "160000": "commit"}.get(mode, "blob")
    raw = path if isinstance(path, bytes) else path.encode()
    return f"{mode} {kind} {OBJECT} {size:>7}\t".encode() + raw


def refusal_of(*entries: bytes) -> str:
    with pytest.raises(Refused) as refused:
        judge_listing(entries)
    return str(refused.value)


def test_ordinary_tree_is_fit_and_its_links_are_returned() -> None:
    listing = [
        entry("a", "040000", "-"),
        entry("a/run me", "100755"),
        entry("a/wörter.txt"),
        entry(b"a/latin-\xe9"),
        entry("a/link", "120000", "6"),
        entry(".gitignore"),
        entry("vendored", "160000", "-"),
    ]
    assert judge_listing(listing) == [Link(b"a/link", OBJECT)]


def test_listing_without_sizes_is_judged_by_its_names() -> None:
    assert judge_listing([f"100644 blob {OBJECT}\ta".encode()]) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/".join(["d"] * 65), "is deeper than 64 directories"),
        ("/".join(["d" * 200] * 6), "is a path of more than 1024 bytes"),
        ("n" * 256, "has a name of more than 255 bytes"),
        ("a/../b", "is no path below a directory"),
        ("/etc/passwd", "is no path below a directory"),
        ("a//b", "is no path below a directory"),
        ("a/.git/hooks/post-checkout", "has a name that git keeps for itself"),
        (".GIT/config", "has a name that git keeps for itself"),
        ("git~1/config", "has a name that git keeps for itself"),
        (".git . /config", "has a name that git keeps for itself"),
        ("red\x1b[31m", "has a name with a character that cannot be seen"),
        ("two\nlines", "has a name with a character that cannot be seen"),
        ("gpj.\u202eexe", "has a name with a character that cannot be seen"),
        ("c1\x9b", "has a name with a character that cannot be seen"),
    ],
)
def test_unfit_path_is_refused_by_name(path: str, said: str) -> None:
    refusal = refusal_of(entry(path))
    assert refusal.endswith(said)
    assert refusal.isprintable()
    assert len(refusal) < 300


def test_names_that_differ_in_their_case_are_refused() -> None:
    assert "b and B are the same name but for case" in refusal_of(entry("B"), entry("a"), entry("b"))
    assert "a/README" in refusal_of(entry("A", "040000", "-"), entry("A/readme"), entry("a/README"))
    assert "are the same" in refusal_of(entry("caf\u00e9"), entry("cafe\u0301"))


def test_name_that_stands_there_twice_is_refused() -> None:
    assert "are the same" in refusal_of(entry("a", "120000"), entry("a", "040000", "-"), entry("a/b"))


def test_what_is_too_large_is_refused() -> None:
    assert refusal_of(entry("a", size=str((1 << 30) + 1))) == "files: a is larger than 1 GiB"
    half = str(1 << 30)
    assert "larger than 4 GiB together" in refusal_of(*(entry(name, size=half) for name in "abcde"))
    assert "is a link to a path of more than 1024 bytes" in refusal_of(entry("a", "120000", "1025"))


def test_tree_that_repeats_itself_without_end_is_refused_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MOST_ENTRIES", 1_000)
    endless = (entry(f"{number}", "040000", "-") for number in iter(iter(range(10**9)).__next__, -1))
    with pytest.raises(Refused, match="more than 1000 files and directories"):
        judge_listing(endless)


@pytest.mark.parametrize("line", [b"", b"garbage", b"100644 blob x 1\ta", entry("a", "140000"), entry("a", "060000")])
def test_what_git_should_not_list_is_refused(line: bytes) -> None:
    assert refusal_of(line)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"l", b"a"),
        (b"l", b"a/b/c"),
        (b"l", b"."),
        (b"a/l", b".."),
        (b"a/l", b"../b"),
        (b"a/b/l", b"./../../c//d"),
        (b"l", b"..."),
    ],
)
def test_link_within_the_tree_is_fit(path: bytes, target: bytes) -> None:
    judge_target(Link(path, OBJECT), target)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"l", b""),
        (b"l", b"/"),
        (b"l", b"/etc/passwd"),
        (b"l", b".."),
        (b"a/l", b"../.."),
        (b"a/l", b"./.././../b"),
        # What "up" leads to is not known here: it may be a link to the top.
        (b"a/l", b"up/.."),
        (b"a/l", b"up/../../b"),
        (b"l", b"a\0b"),
        (b"l", b"a" * 1025),
    ],
)
def test_link_out_of_the_tree_is_refused_by_name(path: bytes, target: bytes) -> None:
    with pytest.raises(Refused, match="leads out of the commit"):
        judge_target(Link(path, OBJECT), target)


def test_listing_is_split_at_its_nuls_and_a_torn_end_is_left_out() -> None:
    assert list(split_entries(b"one\0two\0thr")) == [b"one", b"two"]
