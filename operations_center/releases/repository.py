"""The user's clone, by the git CLI: fetch from it what is new, and take a commit's tree out of it.

Of the clone nothing is changed but objects, and refs below ``refs/operations-center/``, which keep git's own
collection of garbage from what was fetched. No hook is run, nothing is asked on a terminal, nothing waits for ever.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.releases.steps import Ended, run_limited
from operations_center.text import hide_secrets, on_one_line

OLDEST_GIT = (2, 29)
"""`git fetch --no-write-fetch-head`."""

FETCH_WITHIN_S = 120.0
LOOK_WITHIN_S = 30.0
CHECK_OUT_WITHIN_S = 300.0

# What a clone may be configured to do beside what it is asked for.
_NOTHING_ELSE = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.sparseCheckout": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.writeCommitGraph": "false",
    "submodule.recurse": "false",
}

# Of `git rev-parse --local-env-vars`: what would lead to another repository, if we are run by a hook of one.
_ANOTHER_REPOSITORY = frozenset(
    {
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_NAMESPACE", "GIT_PREFIX"),
        *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE"),
    }
)


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
        # Else it is a URL or a path.
        is_name = "/" not in self.remote and ":" not in self.remote
        if is_name and not self._asks("config", "--get", f"remote.{self.remote}.url"):
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
        self._git(
            *("fetch", "--quiet", "--force", "--no-tags", "--no-prune", "--no-recurse-submodules"),
            # Else the clone's own refs/remotes would be moved, too.
            *("--no-write-fetch-head", "--no-auto-gc", "--refmap=", "--", self.remote),
            f"refs/heads/{self.branch}:{self._head_ref}",
            within_s=self.fetch_within_s,
        )
        return self._git("rev-parse", "--verify", f"{self._head_ref}^{{commit}}")

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

    def check_out(self, commit: str, directory: Path, index: Path) -> None:
        """Write a commit's tree into an empty directory, filters applied, by an index of its own.

        Submodules stay empty. Raises OperationsCenterError; then some of the files may be there.
        """
        self._git(
            *(f"--work-tree={directory}", "read-tree", "--reset", "-u", commit),
            within_s=CHECK_OUT_WITHIN_S,
            GIT_INDEX_FILE=str(index),
        )

    def has_uncommitted_changes(self) -> bool:
        """Of files that it tracks: they are in no release."""
        if self.top() is None:
            return False
        return bool(self._asks("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"))

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
        return self._run("merge-base", "--is-ancestor", commit, head, within_s=LOOK_WITHIN_S)[0].code == 0

    def _asks(self, *words: str) -> str:
        """What git answers; empty when it has no answer."""
        ended, answer, _ = self._run(*words, within_s=LOOK_WITHIN_S)
        return answer if ended.code == 0 else ""

    def _git(self, *words: str, within_s: float = LOOK_WITHIN_S, advice: str = "", **variables: str) -> str:
        ended, answer, said = self._run(*words, within_s=within_s, **variables)
        if ended.code is None:
            verb = next(word for word in words if not word.startswith("-"))
            raise Unavailable(
                f"cannot pull: git {verb} was {ended.in_words}, and was ended; "
                f"see whether {hide_secrets(self.remote)} can be reached, and try again"
            )
        if ended.code != 0 or _REJECTED in said:
            raise self._explained(said, advice)
        return answer

    def _run(self, *words: str, within_s: float, **variables: str) -> tuple[Ended, str, str]:
        """How it ended, its output and its complaints."""
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
                )
                return ended, _text_of(out.fileno()).strip(), _text_of(err.fileno())
        except OSError as error:
            raise OperationsCenterError(f"cannot pull: cannot run git: {error.strerror or error}") from error

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in self.environment.items() if name not in _ANOTHER_REPOSITORY}
        return inherited | {
            "LC_ALL": "C",
            "LANGUAGE": "",
            "GIT_TERMINAL_PROMPT": "0",
            # ssh has no terminal here, and would ask on the screen instead (ssh(1)).
            "SSH_ASKPASS_REQUIRE": "never",
            # The clone's own index is not even refreshed.
            "GIT_OPTIONAL_LOCKS": "0",
        }

    def _explained(self, said: str, advice: str = "") -> OperationsCenterError:
        """Git's words as one of our errors, with what to do about it."""
        words = _first_words(said)
        for pattern, kind, what_to_do in _ADVICE:
            if re.search(pattern, said):
                advice = what_to_do.format(repository=self.directory, remote=self.remote, branch=self.branch)
                return self._error(words, advice, kind)
        return self._error(words, advice or f"try `git -C {self.directory} fetch {self.remote} {self.branch}`")

    def _error(
        self, problem: str, advice: str, kind: type[OperationsCenterError] = OperationsCenterError
    ) -> OperationsCenterError:
        return kind(on_one_line(hide_secrets(f"cannot pull: {problem}; {advice}")))


_REJECTED = "because shallow roots are not allowed"
"""A warning only: git says that it has fetched, and has not."""

# Patterns of git's complaints, in the order in which they are looked for.
_ADVICE: tuple[tuple[str, type[OperationsCenterError], str], ...] = (
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
        "see whether {remote} can be reached, and try again",
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


def _text_of(descriptor: int) -> str:
    return os.pread(descriptor, 1024 * 1024, 0).decode(errors="replace")
