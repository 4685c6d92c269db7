"""The user's clone, by the git CLI: fetch from it what is new, and take a commit's tree out of it.

Of the clone nothing is changed but objects, and refs below ``refs/operations-center/``, which keep git's own
collection of garbage from what was fetched. No hook is run, nothing is asked on a terminal, nothing waits for ever.
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.files import open_file
from operations_center.releases.credentials import Address, address_of
from operations_center.releases.steps import Bounds, Ended, Refused, run_limited
from operations_center.releases.tree import (
    LARGEST_LISTING,
    LARGEST_SUM,
    Link,
    judge_listing,
    judge_target,
    split_entries,
)
from operations_center.text import hide_secrets, on_one_line

OLDEST_GIT = (2, 29)
"""`git fetch --no-write-fetch-head`."""

FETCH_WITHIN_S = 120.0
LOOK_WITHIN_S = 30.0
CHECK_OUT_WITHIN_S = 300.0

LARGEST_FETCH = 4 << 30
"""Bytes of a pack, which is one file. A remote may send data without end."""

MOST_MEMORY = 4 << 30
"""Of one git process, which keeps the list of a remote's branches there."""

LOOK_BOUNDS = Bounds(LARGEST_LISTING, MOST_MEMORY)
CHECK_OUT_BOUNDS = Bounds(LARGEST_SUM, MOST_MEMORY)

LARGEST_COMPLAINT = 8 << 20
"""Bytes that a remote may have git say, which goes on while git waits for it."""

READ_OF_COMPLAINT = 16 * 1024

# What a clone may be configured to do beside what it is asked for.
_NOTHING_ELSE = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.sparseCheckout": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.writeCommitGraph": "false",
    "submodule.recurse": "false",
    # What a remote may name to have git fetch from, or run, something else.
    "transfer.bundleURI": "false",
    "protocol.ext.allow": "never",
    # Names that other systems take for ".git" are refused here as well.
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
}

# Of `git rev-parse --local-env-vars`: what would lead to another repository, if we are run by a hook of one.
ANOTHER_REPOSITORY = frozenset(
    {
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_NAMESPACE", "GIT_PREFIX"),
        *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE"),
        *("GIT_QUARANTINE_PATH", "GIT_REPLACE_REF_BASE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_IMPLICIT_WORK_TREE"),
    }
)


class _Said(NamedTuple):
    """How git ended, its output, and the beginning of its complaints."""

    ended: Ended
    output: bytes
    complaint: str

    @property
    def answer(self) -> str:
        return self.output.decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class Repository:
    """A clone, and which branch of which of its remotes is followed; ``environment`` is what git is run with."""

    directory: Path
    remote: str
    branch: str
    environment: Mapping[str, str]
    fetch_within_s: float = FETCH_WITHIN_S

    def refuse_unusable(self) -> None:
        """Looks at git and at the clone only, not at its remote. Raises OperationsCenterError."""
        top = self.top()
        version = self._git("version")
        numbers = re.search(r"(\d+)\.(\d+)", version)
        if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_GIT:
            raise self._error(f"this is {version}", "install git 2.29 or later")
        if top is not None and not top.samefile(self.directory):
            raise self._error(f"{self.directory} lies inside of the clone {top}", f"set code_pull.repository to {top}")
        self._git("check-ref-format", f"refs/heads/{self.branch}", advice="set code_pull.branch to a branch")
        if self._is_name and not self._asks("config", "--get", f"remote.{self.remote}.url"):
            raise self._error(f"{self.directory} has no remote {self.remote}", "set code_pull.remote to one it has")

    def top(self) -> Path | None:
        """Where its files are; None for a bare repository. Raises OperationsCenterError where there is none."""
        if not self.directory.is_dir():
            raise self._error(f"{self.directory} is no directory", "set code_pull.repository to a clone")
        if self._git("rev-parse", "--is-bare-repository") == "true":
            return None
        return Path(self._git("rev-parse", "--show-toplevel"))

    def fetch(self) -> str:
        """Fetch the branch; the commit that is its head now. Raises OperationsCenterError, Unavailable."""
        self.refuse_unusable()
        with self._packs_left_behind():
            self._fetch()
        return self._git("rev-parse", "--verify", f"{self._head_ref}^{{commit}}")

    def _fetch(self) -> None:
        address = self._address()
        said = self._run(
            *address.options,
            *("fetch", "--quiet", "--force", "--no-tags", "--no-prune", "--no-recurse-submodules"),
            # Else the clone's own refs/remotes would be moved, too.
            *("--no-write-fetch-head", "--no-auto-gc", "--refmap=", "--", address.remote),
            f"refs/heads/{self.branch}:{self._head_ref}",
            within_s=self.fetch_within_s,
            bounds=Bounds(LARGEST_FETCH, MOST_MEMORY),
            given=None,
            **address.variables,
        )
        self._refuse_failed(said, "fetch")

    def _address(self) -> Address:
        """The remote by its name where that is all that git needs, so that what is configured for it counts."""
        named = address_of(self._asks("remote", "get-url", self.remote) if self._is_name else self.remote)
        return named if named.options else Address(self.remote)

    @contextmanager
    def _packs_left_behind(self) -> Iterator[None]:
        """Remove what a fetch that failed has left half-written: git would keep it for weeks, for each try."""
        directory = self.directory / self._git("rev-parse", "--git-path", "objects/pack")
        before = _drafts_in(directory)
        try:
            yield
        except OperationsCenterError as error:
            sizes = [_remove_unless_open(directory / draft) for draft in _drafts_in(directory) - before]
            if max(sizes, default=0) >= LARGEST_FETCH:
                problem = f"{self.remote} sends more than {LARGEST_FETCH >> 20} MiB at once"
                raise self._error(problem, "fetch once by hand, and try again") from error
            raise

    def refuse_diverged(self, head: str, current: str | None) -> None:
        """Raises OperationsCenterError unless ``head`` goes on from what is there, or a person has accepted it.

        What is there: ``current``, the commit that the fleet runs, else the clone's own branch if that is checked out.
        Accepted is what the clone's own branch is at, and what goes on from there if that has left what is there.
        """
        base = self.base(current)
        if base is None or self._is_ancestor(base, head) or self._is_accepted(head, base):
            return
        whose = "the fleet runs" if current else "the clone has checked out"
        if self._is_ancestor(head, base):
            problem = f"is older than {base[:12]}, which {whose}"
        else:
            problem = f"does not go on from {base[:12]}, which {whose}: it has diverged or was force-pushed"
        is_checked_out = self._checked_out() == self.branch and self.top() is not None
        accept = f"reset --keep {head}" if is_checked_out else f"branch --force {self.branch} {head}"
        raise self._error(
            f"{self.branch} of {self.remote} is at {head[:12]}, which {problem}",
            f"push what is missing, or accept it with `git -C {self.directory} {accept}`",
        )

    def base(self, current: str | None) -> str | None:
        """What new commits are counted from; None where they have nothing to go on from."""
        if current is not None:
            return current
        return self._own_branch() if self._checked_out() == self.branch else None

    def count_new(self, base: str | None, head: str) -> int | None:
        """How many commits ``head`` has that ``base`` has not; None where that cannot be told."""
        count = self._asks("rev-list", "--count", head, *([f"^{base}"] if base else []))
        return int(count) if count else None

    def refuse_unfit(self, commit: str) -> None:
        """Look at names, kinds and sizes of a commit's files before any is written (see tree.py).

        Raises Refused for what a release may not hold, OperationsCenterError where git has no answer.
        """
        # In a partial clone git would fetch file by file to tell its size.
        sizes = [] if self._asks("config", "--get-regexp", r"^remote\..*\.promisor$") else ["-l"]
        said = self._run(*("ls-tree", "-r", "-t", "-z", "--full-tree", *sizes, commit), within_s=CHECK_OUT_WITHIN_S)
        links = judge_listing(split_entries(said.output))
        if said.ended.code != 0 and len(said.output) >= LARGEST_LISTING:
            raise Refused(f"files: the names of all of them have more than {LARGEST_LISTING >> 20} MiB")
        self._refuse_failed(said, "ls-tree")
        for link, target in self._targets_of(links):
            judge_target(link, target)

    def _targets_of(self, links: Collection[Link]) -> Iterator[tuple[Link, bytes]]:
        if not links:
            return
        with tempfile.TemporaryFile() as wanted:
            wanted.writelines(f"{link.object_id}\n".encode() for link in links)
            wanted.seek(0)
            said = self._run("cat-file", "--batch", within_s=CHECK_OUT_WITHIN_S, given=wanted)
        self._refuse_failed(said, "cat-file")
        begin = 0
        for link in links:
            end = said.output.index(b"\n", begin)
            begin, size = end + 1, int(said.output[begin:end].split()[-1])
            yield link, said.output[begin : begin + size]
            begin += size + 1

    def check_out(self, commit: str, directory: Path, index: Path) -> None:
        """Write a commit's tree into an empty directory, filters applied, by an index of its own.

        Submodules stay empty. Raises OperationsCenterError; then some of the files may be there. A tree that is fit is
        not to blame: the disk is, or a filter.
        """
        said = self._run(
            *(f"--work-tree={directory}", "read-tree", "--reset", "-u", commit),
            within_s=CHECK_OUT_WITHIN_S,
            bounds=CHECK_OUT_BOUNDS,
            GIT_INDEX_FILE=str(index),
        )
        self._refuse_failed(said, "read-tree")

    def has_uncommitted_changes(self) -> bool:
        """Of files that it tracks: they are in no release."""
        if self.top() is None:
            return False
        return bool(self._asks("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"))

    @property
    def _is_name(self) -> bool:
        """Else it is a URL or a path."""
        return "/" not in self.remote and ":" not in self.remote

    @property
    def _head_ref(self) -> str:
        # One name without a slash: a branch "a" that becomes "a/b" must not be in its own way.
        return f"refs/operations-center/head/{quote(self.branch, safe='')}"

    def _checked_out(self) -> str:
        """The clone's branch; empty for a detached HEAD."""
        return self._asks("symbolic-ref", "--quiet", "HEAD").removeprefix("refs/heads/")

    def _is_accepted(self, head: str, base: str) -> bool:
        own = self._own_branch()
        if own is None:
            return False
        # A branch that was left where it was says nothing: everything goes on from its commit.
        return own == head or (self._is_ancestor(own, head) and not self._is_ancestor(own, base))

    def _own_branch(self) -> str | None:
        return self._asks("rev-parse", "--verify", "--quiet", f"refs/heads/{self.branch}^{{commit}}") or None

    def _is_ancestor(self, commit: str, head: str) -> bool:
        """False also for a commit that the clone does not have."""
        return self._run("merge-base", "--is-ancestor", commit, head, within_s=LOOK_WITHIN_S).ended.code == 0

    def _asks(self, *words: str) -> str:
        """What git answers; empty when it has no answer."""
        said = self._run(*words, within_s=LOOK_WITHIN_S)
        return said.answer if said.ended.code == 0 else ""

    def _git(self, *words: str, within_s: float = LOOK_WITHIN_S, advice: str = "", bounds: Bounds = LOOK_BOUNDS) -> str:
        said = self._run(*words, within_s=within_s, bounds=bounds)
        self._refuse_failed(said, words[0], advice)
        return said.answer

    def _refuse_failed(self, said: _Said, verb: str, advice: str = "") -> None:
        if said.ended.code is None:
            raise Unavailable(
                f"cannot pull: git {verb} was {said.ended.in_words}, and was ended; "
                f"see whether {hide_secrets(self.remote)} can be reached, and try again"
            )
        if said.ended.code != 0 or _REJECTED in said.complaint:
            raise self._explained(said, advice)

    def _run(
        self,
        *words: str,
        within_s: float,
        bounds: Bounds = LOOK_BOUNDS,
        given: IO[bytes] | None = None,
        **variables: str,
    ) -> _Said:
        """``given`` is its input."""
        options = [word for key, value in _NOTHING_ELSE.items() for word in ("-c", f"{key}={value}")]
        try:
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                ended = run_limited(
                    ["git", *options, *words],
                    directory=self.directory,
                    environment=self._environment() | variables,
                    within_s=within_s,
                    out=out,
                    err=err,
                    given=given,
                    meanwhile=lambda: self._refuse_flood(err),
                    bounds=bounds,
                )
                complaint = os.pread(err.fileno(), READ_OF_COMPLAINT, 0).decode(errors="replace")
                out.seek(0)
                return _Said(ended, out.read(LARGEST_LISTING), complaint)
        except OSError as error:
            raise OperationsCenterError(f"cannot pull: cannot run git: {error.strerror or error}") from error

    def _refuse_flood(self, err: IO[bytes]) -> None:
        if os.fstat(err.fileno()).st_size > LARGEST_COMPLAINT:
            problem = f"{self.remote} has git say more than {LARGEST_COMPLAINT >> 20} MiB"
            raise self._error(problem, _UNREACHED.format(remote=self.remote), Unavailable)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in self.environment.items() if name not in ANOTHER_REPOSITORY}
        return inherited | {
            "LC_ALL": "C",
            "LANGUAGE": "",
            "GIT_TERMINAL_PROMPT": "0",
            # ssh has no terminal here, and would ask on the screen instead (ssh(1)).
            "SSH_ASKPASS_REQUIRE": "never",
            # The clone's own index is not even refreshed.
            "GIT_OPTIONAL_LOCKS": "0",
            # A release is what its commit's id says, whatever the clone has put in the place of an object.
            "GIT_NO_REPLACE_OBJECTS": "1",
        }

    def _explained(self, said: _Said, advice: str = "") -> OperationsCenterError:
        """Git's words as one of our errors, with what to do about it."""
        words = _first_words(said.complaint)
        for pattern, kind, what_to_do in _ADVICE:
            if re.search(pattern, said.complaint):
                advice = what_to_do.format(repository=self.directory, remote=self.remote, branch=self.branch)
                return self._error(words, advice, kind)
        return self._error(words, advice or f"try `git -C {self.directory} fetch {self.remote} {self.branch}`")

    def _error(
        self, problem: str, advice: str, kind: type[OperationsCenterError] = OperationsCenterError
    ) -> OperationsCenterError:
        return kind(on_one_line(hide_secrets(f"cannot pull: {problem}; {advice}")))


_REJECTED = "because shallow roots are not allowed"
"""A warning only: git says that it has fetched, and has not."""

_UNREACHED = "see whether {remote} can be reached, and try again"

# Patterns of git's complaints, in the order in which they are looked for.
_ADVICE: tuple[tuple[str, type[OperationsCenterError], str], ...] = (
    (
        r"(?i)out of memory|memory exhausted",
        OperationsCenterError,
        "{remote} sends more than a pull takes: fetch once by hand, and try again",
    ),
    (
        r"(?i)(external|smudge|clean) filter",
        Unavailable,
        "see whether the filter works: `git -C {repository} config --get-regexp filter`",
    ),
    (r"[Nn]o space left|[Dd]isk quota", OperationsCenterError, "the disk is full: make room and try again"),
    (
        r"dubious ownership",
        OperationsCenterError,
        "run the fleet as its owner, or allow it with `git config --global --add safe.directory {repository}`",
    ),
    (r"failed to run command", OperationsCenterError, "install git"),
    (r"not a git repository", OperationsCenterError, "set code_pull.repository to a clone, not {repository}"),
    (r"find remote ref", OperationsCenterError, "push {branch} to {remote}, or set code_pull.branch"),
    (
        r"(?i)authentication failed|could not read (username|password)|permission denied|host key verification"
        r"|access denied|repository.* not found|error: 40[13]|terminal prompts disabled",
        OperationsCenterError,
        "let this user in without a password: with a key, or with a credential helper",
    ),
    (
        _REJECTED,
        OperationsCenterError,
        "{remote} is a shallow clone itself: fetch from a whole one",
    ),
    (
        r"\.lock': File exists|cannot lock ref",
        Unavailable,
        "try again; if no git runs in {repository}, remove the lock that it names",
    ),
    (
        r"(?i)could not resolve|could not connect|unable to connect|connection |no route to|network is unreachable"
        r"|unable to access|hung up|rpc failed|timed out|could not read from remote|disconnect|early eof",
        Unavailable,
        _UNREACHED,
    ),
    (
        r"(?i)unable to read|missing (blob|tree|commit)|corrupt|bad (object|tree)|loose object|object file|not our ref"
        r"|all necessary objects|inflate|index-pack|invalid object|unresolved delta|does not point to a valid object",
        OperationsCenterError,
        "an object is missing or broken: see `git -C {repository} fsck`, here and where {remote} is",
    ),
)


_SAYS_NOTHING = re.compile(
    r"(?i)\s*(warning(?!: rejected)|hint|from|auto packing|remote: (enumerat|count|compress|total))\b"
)


def _first_words(said: str) -> str:
    """The first line that says why: those that follow say what it led to."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not _SAYS_NOTHING.match(line)]
    return "git says: " + " ".join(re.sub(r"^(fatal|error): ", "", (lines or ["nothing"])[0]).split())[:300]


def _drafts_in(packs: Path) -> set[str]:
    with suppress(OSError):
        return {name for name in os.listdir(packs) if name.startswith("tmp_")}
    return set()


def _remove_unless_open(draft: Path) -> int:
    """Return its size. Another git may be writing it: a lease is only given for what nobody writes (fcntl(2))."""
    with suppress(OSError):
        descriptor = open_file(draft)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            draft.unlink()
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    return 0
