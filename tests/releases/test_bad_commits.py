"""What whoever may push can put into a commit. It is bad then, whatever it is, and the next one is tried."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.releases import repository
from operations_center.releases.staging import BadRelease
from tests.releases.clones import Clones

FILE = "100644 blob"


class Objects:
    """Writes objects into the remote that no git would make of files."""

    def __init__(self, clones: Clones) -> None:
        self._clones = clones

    def blob(self, content: bytes) -> str:
        return self._write(content, "hash-object", "-w", "--stdin")

    def tree(self, *entries: str) -> str:
        """As git writes a tree: sorted, and with no look at what stands in it."""
        raw = b""
        for entry in sorted(entries, key=lambda entry: entry.partition("\t")[2]):
            head, _, name = entry.partition("\t")
            mode, _, object_id = head.split()
            raw += f"{mode.lstrip('0')} {name}\0".encode() + bytes.fromhex(object_id)
        return self._write(raw, "hash-object", "-w", "--literally", "-t", "tree", "--stdin")

    def push(self, tree: str) -> str:
        git, remote = self._clones.git, self._clones.remote
        commit = git(remote, "commit-tree", tree, "-p", "main", "-m", "\x1b]0;owned\x07")
        git(remote, "update-ref", "refs/heads/main", commit)
        return commit

    def push_mended(self) -> str:
        """What the first commit had, on top of whatever is there now."""
        root = self._clones.git(self._clones.remote, "rev-list", "--max-parents=0", "main")
        return self.push(self._clones.git(self._clones.remote, "rev-parse", f"{root}^{{tree}}"))

    def _write(self, content: bytes, *words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=self._clones.remote,
            env=self._clones.environment,
            input=content,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()


@pytest.fixture
def objects(clones: Clones) -> Objects:
    return Objects(clones)


def deep(objects: Objects) -> str:
    tree = objects.tree(f"{FILE} {objects.blob(b'x')}\tf")
    for _ in range(200):
        tree = objects.tree(f"040000 tree {tree}\td")
    return tree


def bomb(objects: Objects) -> str:
    """Ten thousand million files."""
    tree = objects.tree(f"{FILE} {objects.blob(b'x')}\tf")
    for _ in range(10):
        tree = objects.tree(*(f"040000 tree {tree}\t{number}" for number in range(10)))
    return tree


def named(name: str) -> Callable[[Objects], str]:
    return lambda objects: objects.tree(f"{FILE} {objects.blob(b'x')}\t{name}")


def below_git(objects: Objects) -> str:
    hooks = objects.tree(f"100755 blob {objects.blob(b'#!/bin/sh')}\tpost-checkout")
    return objects.tree(f"040000 tree {hooks}\t.Git")


def linked(target: bytes) -> Callable[[Objects], str]:
    return lambda objects: objects.tree(f"120000 blob {objects.blob(target)}\tl")


def clash(objects: Objects) -> str:
    blob = objects.blob(b"x")
    return objects.tree(f"{FILE} {blob}\tREADME", f"{FILE} {blob}\tReadme")


def twice(objects: Objects) -> str:
    """A link to elsewhere, and files below it."""
    below = objects.tree(f"{FILE} {objects.blob(b'x')}\tf")
    return objects.tree(f"120000 blob {objects.blob(b'.')}\ta", f"040000 tree {below}\ta")


BAD: dict[str, tuple[Callable[[Objects], str], str]] = {
    "deep": (deep, "is deeper than 64 directories"),
    "bomb": (bomb, "more than 200000 files and directories"),
    "control": (named("\x1b[31m"), "a character that cannot be seen"),
    "dot-dot": (named(".."), "is no path below a directory"),
    "long": (named("n" * 300), "has a name of more than 255 bytes"),
    "git": (below_git, "a name that git keeps for itself"),
    "absolute link": (linked(b"/etc/passwd"), "leads out of the commit, to /etc/passwd"),
    "link up": (linked(b"../../ledger.db"), "leads out of the commit"),
    "clash": (clash, "are the same name but for case"),
    "twice": (twice, "are the same name but for case"),
}


def test_bad_commits_are_bad_by_name_and_the_one_that_mends_them_is_made(clones: Clones, objects: Objects) -> None:
    made = clones.stage().release.commit
    for name, (make, said) in BAD.items():
        commit = objects.push(make(objects))
        with pytest.raises(BadRelease) as refused:
            clones.stage()
        assert said in str(refused.value), name
        assert clones.known()[commit][0] == "bad"
        # Nothing of it was written.
        assert clones.on_disk() == {made}, name
    mended = objects.push_mended()
    assert clones.stage().release.commit == mended


def test_submodule_is_an_empty_directory_and_nothing_is_fetched_for_it(clones: Clones, objects: Objects) -> None:
    modules = objects.blob(b'[submodule "m"]\n\tpath = m\n\turl = ext::sh -c touch% owned\n')
    commit = objects.push(objects.tree(f"{FILE} {modules}\t.gitmodules", f"160000 commit {'b' * 40}\tm"))
    assert clones.stage().release.commit == commit
    assert list((clones.release(commit) / "m").iterdir()) == []


def test_attributes_of_a_commit_run_nothing_and_expand_nothing(clones: Clones, tmp_path: Path) -> None:
    attributes = "* filter=evil diff=evil merge=evil export-subst ident\n"
    commit = clones.push(
        {".gitattributes": attributes, ".gitconfig": f"[filter 'evil']\nsmudge = touch {tmp_path}/owned\n"}
    )
    clones.push({"stamp": "$Format:%H$"})
    commit = clones.stage().release.commit
    assert (clones.release(commit) / "stamp").read_text() == "$Format:%H$"
    assert not (tmp_path / "owned").exists()


def test_replaced_object_of_the_clone_does_not_change_what_a_commit_holds(clones: Clones) -> None:
    commit = clones.push({"program": "two"})
    clones.repository().fetch()
    other = clones.git(clones.clone, "rev-parse", "HEAD")
    clones.git(clones.clone, "replace", commit, other)
    assert clones.stage().release.commit == commit
    assert (clones.release(commit) / "program").read_text() == "two"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may make a file that nobody can remove")
def test_bad_release_that_cannot_be_removed_keeps_no_other_from_being_made(clones: Clones) -> None:
    clones.configure(install="['sh', '-c', 'touch stays; chattr +i stays; false']")
    bad = clones.push({"program": "two"})
    with pytest.raises(BadRelease):
        clones.stage()
    stays = clones.release(bad) / "stays"
    try:
        attributes = subprocess.run(["lsattr", str(stays)], check=False, capture_output=True, text=True).stdout
        if "i" not in attributes.partition(" ")[0]:
            pytest.skip("this file system has no immutable files")
        clones.configure()
        mended = clones.push({"program": "three"})
        assert clones.stage().release.commit == mended
    finally:
        subprocess.run(["chattr", "-i", str(stays)], check=False)


def test_release_that_an_install_has_made_bottomless_is_removed(clones: Clones) -> None:
    script = 'import os\\nfor _ in range(3000): os.mkdir(\\"d\\"); os.chdir(\\"d\\")\\nraise SystemExit(1)'
    clones.configure(install=f'["python3", "-c", "{script}"]')
    bad = clones.push({"program": "two"})
    with pytest.raises(BadRelease):
        clones.stage()
    assert clones.known() == {bad: ("bad", clones.known()[bad][1])}
    assert clones.on_disk() == set()


# Remotes that do not stop


def upload_pack(clones: Clones, script: str) -> None:
    """A remote that says what this says, in the place of git's own program."""
    program = clones.root / "upload-pack"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    clones.git(clones.clone, "config", "remote.origin.uploadpack", str(program))


def test_remote_that_complains_without_end_is_given_up(clones: Clones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "LARGEST_COMPLAINT", 64 * 1024)
    upload_pack(clones, "yes 'repository fatal: \033[31m' >&2")
    with pytest.raises(Unavailable, match=r"has git say more than") as refused:
        clones.repository().fetch()
    assert str(refused.value).isprintable()


def test_remote_that_sends_more_than_a_fetch_may_have_leaves_nothing_behind(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    clones.push({"large": ""})
    (clones.author / "large").write_bytes(os.urandom(4 << 20))
    clones.push({})
    monkeypatch.setattr(repository, "LARGEST_FETCH", 1 << 20)
    packs = clones.clone / ".git/objects/pack"
    before = set(packs.iterdir())
    clones.git(clones.clone, "config", "fetch.unpackLimit", "1")
    with pytest.raises(OperationsCenterError, match="sends more than 1 MiB at once"):
        clones.repository().fetch()
    assert set(packs.iterdir()) == before
