"""The user's clone: what is fetched into it, what is refused, and that nothing of the user's is changed."""

import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.releases.repository import Repository
from tests.fleet import wait_until
from tests.releases.clones import Clones


def check_out(repository: Repository, commit: str, directory: Path) -> Path:
    directory.mkdir()
    repository.check_out(commit, directory, directory.with_name("index"))
    return directory


def facts_of(clone: Path) -> dict[str, bytes | None]:
    """Everything of a clone but objects and our own refs."""
    found: dict[str, bytes | None] = {}
    for path in sorted(clone.rglob("*")):
        name = str(path.relative_to(clone))
        if "objects" not in path.parts and "operations-center" not in path.parts:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def test_a_fetch_changes_nothing_that_is_the_users(clones: Clones, tmp_path: Path) -> None:
    (clones.clone / "program").write_text("changed, and not committed")
    # What an index says of it is no longer so, which git would mend.
    os.utime(clones.clone / ".gitignore", (1, 1))
    clones.git(clones.author, "tag", "v1")
    clones.git(clones.author, "push", "--quiet", "--tags")
    for hook in ("reference-transaction", "post-index-change", "post-checkout"):
        (clones.clone / ".git/hooks").mkdir(exist_ok=True)
        (clones.clone / ".git/hooks" / hook).write_text(f"#!/bin/sh\ntouch '{tmp_path}/hooked'\n")
        (clones.clone / ".git/hooks" / hook).chmod(0o755)
    commit = clones.push({"program": "two"})
    before = facts_of(clones.clone)
    repository = clones.repository()
    assert repository.fetch() == commit
    repository.refuse_diverged(commit, None)
    assert repository.has_uncommitted_changes()
    check_out(repository, commit, tmp_path / "release")
    assert facts_of(clones.clone) == before
    assert not (tmp_path / "hooked").exists()


def test_a_commits_tree_is_written_as_git_would(clones: Clones, tmp_path: Path) -> None:
    clones.push({".gitattributes": "*.txt text eol=crlf\n", "a directory/a file.txt": "line\n"})
    (clones.author / "run me").write_text("#!/bin/sh\n")
    (clones.author / "run me").chmod(0o755)
    (clones.author / "link").symlink_to("run me")
    commit = clones.push({})
    clones.git(clones.clone, "sparse-checkout", "set", "nothing")
    repository = clones.repository()
    release = check_out(repository, repository.fetch(), tmp_path / "a release")
    assert repository.fetch() == commit
    assert (release / "a directory/a file.txt").read_bytes() == b"line\r\n"
    assert os.access(release / "run me", os.X_OK)
    assert os.readlink(release / "link") == "run me"
    assert (release / "program").read_text() == "one"
    assert not (release / ".git").exists()


def bare(clones: Clones) -> Path:
    clones.git(clones.root, "clone", "--quiet", "--bare", str(clones.remote), "bare.git")
    return clones.root / "bare.git"


def linked(clones: Clones) -> Path:
    clones.git(clones.clone, "worktree", "add", "--quiet", "--detach", str(clones.root / "linked"))
    return clones.root / "linked"


def shallow(clones: Clones) -> Path:
    clones.push({"program": "more"})
    clones.git(clones.root, "clone", "--quiet", "--depth=1", clones.remote.as_uri(), "shallow")
    return clones.root / "shallow"


@pytest.mark.parametrize("make", [bare, linked, shallow])
def test_every_kind_of_clone_is_followed(clones: Clones, tmp_path: Path, make: Callable[[Clones], Path]) -> None:
    repository = clones.repository(make(clones))
    commit = clones.push({"program": "two"})
    assert repository.fetch() == commit
    repository.refuse_diverged(commit, None)
    assert (check_out(repository, commit, tmp_path / "release") / "program").read_text() == "two"
    assert not repository.has_uncommitted_changes()


def test_a_repository_that_a_hook_names_is_not_taken_for_the_clone(clones: Clones) -> None:
    commit = clones.push({"program": "two"})
    environment = clones.environment | {"GIT_DIR": str(clones.author / ".git"), "GIT_INDEX_FILE": "x"}
    assert Repository(clones.clone, "origin", "main", environment).fetch() == commit
    assert clones.git(clones.clone, "for-each-ref", "--format=%(objectname)", "refs/operations-center") == commit
    assert clones.git(clones.author, "for-each-ref", "refs/operations-center") == ""


def test_a_branch_that_gets_a_longer_name_is_followed(clones: Clones) -> None:
    clones.git(clones.author, "push", "--quiet", "origin", "HEAD:refs/heads/a")
    assert clones.repository(branch="a").fetch()
    clones.git(clones.author, "push", "--quiet", "origin", ":a", "HEAD:refs/heads/a/b")
    assert clones.repository(branch="a/b").fetch()


def test_new_commits_are_counted_from_what_the_fleet_runs(clones: Clones) -> None:
    repository = clones.repository()
    one, two, three = (clones.push({"program": text}) for text in ("one more", "two", "three"))
    repository.fetch()
    assert repository.count_new(repository.base(None), three) == 3
    assert repository.count_new(repository.base(one), three) == 2
    assert repository.count_new(repository.base(two), two) == 0
    assert repository.count_new("f" * 40, three) is None


# Branches that do not go on


def test_a_force_push_is_refused_until_a_person_accepts_it(clones: Clones) -> None:
    current = clones.push({"program": "two"})
    repository = clones.repository()
    assert repository.fetch() == current
    forced = clones.force_push({"program": "three"})
    assert repository.fetch() == forced
    with pytest.raises(OperationsCenterError, match="diverged or was force-pushed") as refused:
        repository.refuse_diverged(forced, current)
    accept(clones, str(refused.value))
    repository.refuse_diverged(forced, current)


def test_what_goes_on_from_an_accepted_force_push_is_accepted_with_it(clones: Clones) -> None:
    old = clones.git(clones.clone, "rev-parse", "HEAD")
    current = clones.push({"program": "two"})
    repository = clones.repository()
    repository.fetch()
    forced = clones.force_push({"program": "three"})
    further = clones.push({"program": "four"})
    assert repository.fetch() == further
    assert clones.git(clones.clone, "rev-parse", "main") == old
    with pytest.raises(OperationsCenterError, match="diverged or was force-pushed"):
        repository.refuse_diverged(further, current)
    clones.git(clones.clone, "reset", "--quiet", "--keep", forced)
    repository.refuse_diverged(further, current)


def test_a_branch_that_was_set_back_is_refused_until_a_person_accepts_it(clones: Clones) -> None:
    clones.push({"program": "two"})
    current = clones.push({"program": "three"})
    repository = clones.repository()
    repository.fetch()
    clones.git(clones.clone, "checkout", "--quiet", "--detach")
    clones.git(clones.author, "push", "--quiet", "--force", "origin", "HEAD^:main")
    older = repository.fetch()
    with pytest.raises(OperationsCenterError, match="is older than") as refused:
        repository.refuse_diverged(older, current)
    clones.git(clones.clone, "branch", "--force", "main", current)
    accept(clones, str(refused.value))
    repository.refuse_diverged(older, current)


def accept(clones: Clones, complaint: str) -> None:
    """What the complaint says to do."""
    words = complaint.split("`")[1].removeprefix(f"git -C {clones.clone} ").split()
    clones.git(clones.clone, *words)


def test_without_a_release_the_clone_itself_is_what_the_branch_must_go_on_from(clones: Clones) -> None:
    clones.git(clones.clone, "commit", "--quiet", "--allow-empty", "--message", "not pushed")
    repository = clones.repository()
    head = clones.push({"program": "two"})
    assert repository.fetch() == head
    with pytest.raises(OperationsCenterError, match="which the clone has checked out"):
        repository.refuse_diverged(head, None)
    clones.git(clones.clone, "checkout", "--quiet", "--detach")
    repository.refuse_diverged(head, None)


# Errors


def listener() -> tuple[socket.socket, str]:
    """A server that takes connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"git://127.0.0.1:{server.getsockname()[1]}/x"


def test_a_remote_that_hangs_is_given_up(clones: Clones) -> None:
    server, url = listener()
    with server:
        clones.git(clones.clone, "remote", "set-url", "origin", url)
        with pytest.raises(Unavailable, match="not done within 1 s"):
            clones.repository(within_s=1.0).fetch()
    wait_until(lambda: not clones.is_left(), "the end of git and of what it started")


def test_an_ssh_that_hangs_is_given_up_and_ended(clones: Clones) -> None:
    clones.git(clones.clone, "remote", "set-url", "origin", "ssh://example.org/x")
    # It takes no notice of being told to end, which git itself does.
    clones.git(clones.clone, "config", "core.sshCommand", "trap '' TERM; touch $HOME/started; sleep 1000; :")
    with pytest.raises(Unavailable, match="not done within 3 s"):
        clones.repository(within_s=3.0).fetch()
    assert (clones.root / "started").exists()
    wait_until(lambda: not clones.is_left(), "the end of git and of what it started")


def test_git_is_ended_in_time_though_who_started_it_was_killed(clones: Clones) -> None:
    server, url = listener()
    clones.git(clones.clone, "remote", "set-url", "origin", url)
    pid = os.fork()
    if pid == 0:
        server.close()
        clones.repository(within_s=5.0).fetch()
    with server, server.accept()[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_until(lambda: not clones.is_left(), "the end of git")


def no_repository(clones: Clones) -> Repository:
    shutil.rmtree(clones.clone / ".git")
    return clones.repository()


def no_directory(clones: Clones) -> Repository:
    return clones.repository(clones.root / "missing")


def inside_of_a_clone(clones: Clones) -> Repository:
    (clones.clone / "inside").mkdir()
    return clones.repository(clones.clone / "inside")


def no_remote(clones: Clones) -> Repository:
    return clones.repository(remote="upstream")


def no_branch(clones: Clones) -> Repository:
    return clones.repository(branch="missing")


def bad_branch(clones: Clones) -> Repository:
    return clones.repository(branch="a..b")


def remote_that_is_gone(clones: Clones) -> Repository:
    shutil.rmtree(clones.remote)
    return clones.repository()


def refused_connection(clones: Clones) -> Repository:
    server, url = listener()
    server.close()
    clones.git(clones.clone, "remote", "set-url", "origin", url)
    return clones.repository()


def denied(clones: Clones) -> Repository:
    clones.git(clones.clone, "remote", "set-url", "origin", "ssh://example.org/x")
    clones.git(clones.clone, "config", "core.sshCommand", "echo 'Permission denied (publickey).' >&2; exit 255; :")
    return clones.repository()


def shallow_remote(clones: Clones) -> Repository:
    clones.push({"program": "two"})
    clones.git(clones.root, "clone", "--quiet", "--depth=1", clones.remote.as_uri(), "shallow")
    clones.git(clones.clone, "remote", "set-url", "origin", str(clones.root / "shallow"))
    return clones.repository()


def broken_object_of_the_remote(clones: Clones) -> Repository:
    commit = clones.push({"program": "two"})
    break_object(clones.remote, clones.git(clones.author, "rev-parse", f"{commit}:program"))
    return clones.repository()


def locked_ref(clones: Clones) -> Repository:
    """As a machine that has lost its power may leave it."""
    clones.repository().fetch()
    clones.push({"program": "two"})
    (clones.clone / ".git/refs/operations-center/head/main.lock").touch()
    return clones.repository()


def no_git(clones: Clones) -> Repository:
    return Repository(clones.clone, "origin", "main", clones.environment | {"PATH": "/nowhere"})


def break_object(repository: Path, name: str) -> None:
    git = repository / ".git" if (repository / ".git").exists() else repository
    path = git / "objects" / name[:2] / name[2:]
    path.chmod(0o600)
    path.write_bytes(b"rubbish")


@pytest.mark.parametrize(
    ("make", "kind", "advice"),
    [
        (no_repository, OperationsCenterError, "set code_pull.repository"),
        (no_directory, OperationsCenterError, "set code_pull.repository"),
        (inside_of_a_clone, OperationsCenterError, "set code_pull.repository"),
        (no_remote, OperationsCenterError, "set code_pull.remote"),
        (no_branch, OperationsCenterError, "set code_pull.branch"),
        (bad_branch, OperationsCenterError, "set code_pull.branch"),
        (remote_that_is_gone, Unavailable, "try again"),
        (refused_connection, Unavailable, "try again"),
        (denied, OperationsCenterError, "without a password"),
        (shallow_remote, OperationsCenterError, "shallow"),
        (broken_object_of_the_remote, OperationsCenterError, "fsck"),
        (locked_ref, Unavailable, "remove the lock"),
        (no_git, OperationsCenterError, "install git"),
    ],
)
def test_what_git_refuses_is_one_line_with_what_to_do(
    clones: Clones, make: Callable[[Clones], Repository], kind: type[OperationsCenterError], advice: str
) -> None:
    repository = make(clones)
    with pytest.raises(OperationsCenterError) as refused:
        repository.fetch()
    (line,) = str(refused.value).splitlines()
    assert line.startswith("cannot pull: ")
    assert advice in line
    assert type(refused.value) is kind


def test_a_broken_object_of_the_clone_makes_no_release(clones: Clones, tmp_path: Path) -> None:
    repository = clones.repository()
    commit = clones.push({"program": "two"})
    repository.fetch()
    break_object(clones.clone, clones.git(clones.clone, "rev-parse", f"{commit}:program"))
    with pytest.raises(OperationsCenterError, match="fsck"):
        check_out(repository, commit, tmp_path / "release")


def test_a_password_in_a_remotes_url_is_not_told(clones: Clones) -> None:
    clones.git(clones.clone, "remote", "set-url", "origin", "http://me:secret@127.0.0.1:1/x")
    with pytest.raises(Unavailable) as refused:
        clones.repository().fetch()
    assert "secret" not in str(refused.value)
    with pytest.raises(Unavailable) as refused:
        clones.repository(remote="http://me:secret@127.0.0.1:1/x").fetch()
    assert "secret" not in str(refused.value)
