"""What a configuration consists of: one frozen structure for each section of the file.

A structure's attributes are the keys of its section. Where a key is a duration the attribute ends in ``_ms``
(milliseconds), where it is a size in ``_bytes``. Each type says in its description what to write; that is the
advice which a mistake is reported with. ``name`` is not a key but the name of the section itself.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from operations_center import admission
from operations_center.admission import Limits
from operations_center.model import TaskState

UNIT_SUFFIXES = re.compile(r"_(ms|bytes)\Z")

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
PORT = r"(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"

Text = Annotated[str, Meta(pattern=r"\A[^\0]+\Z", description="give a string that is not empty")]
Word = Annotated[str, Meta(pattern=r"\A[^\0]*\Z", description="give a string")]
Name = Annotated[
    str,
    Meta(
        pattern=rf"\A{_NAME}\Z",
        description="give a name of at most 64 letters, digits, _ . -, beginning with a letter or digit",
    ),
]
VariableName = Annotated[
    str,
    Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\Z", description="give the name of an environment variable"),
]
Directory = Annotated[Path, Meta(description="give a path, absolute or relative to this file")]
Url = Annotated[str, Meta(pattern=r"\Ahttps?://[^\s\0]+\Z", description="give an http or https URL")]
Listen = Annotated[
    str,
    Meta(
        pattern=rf"\A(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):{PORT}\Z",
        description='give "host:port", such as "127.0.0.1:8765"',
    ),
]

Duration = Annotated[int, Meta(ge=0, description='give a duration such as "500ms", "30s", "5m", "2h" or "7d"')]
PositiveDuration = Annotated[
    int, Meta(ge=1, description='give a duration longer than 0, such as "500ms", "30s", "5m", "2h" or "7d"')
]
LongerThanABeat = Annotated[
    int, Meta(ge=5_000, description='give a duration of 5s or more, such as "30s": a heartbeat may be 4 s old')
]
Size = Annotated[
    int,
    Meta(ge=0, le=2**63 - 1, description='give a size such as "500MB" or "2GiB", or a number of bytes'),
]
OutputSize = Annotated[
    int, Meta(ge=4096, le=2**62, description='give a size of 4KiB or more, such as "256MiB", or a number of bytes')
]
AtLeastOne = Annotated[int, Meta(ge=1, le=1_000_000, description="give a whole number from 1 to 1000000")]
AtLeastZero = Annotated[int, Meta(ge=0, le=1_000_000, description="give a whole number from 0 to 1000000")]
Factor = Annotated[float, Meta(ge=1, le=1_000, description="give a number from 1 to 1000")]

Command = Annotated[
    tuple[Word, ...],
    Meta(min_length=1, description='give a program and its arguments as a list of strings, such as ["cat"]'),
]
OptionalCommand = Annotated[
    tuple[Word, ...], Meta(description="give a program and its arguments as a list of strings, or []")
]
Commands = Annotated[
    tuple[Command, ...],
    Meta(description='give a list of commands, each a list of strings, such as [["true"]]'),
]
Kinds = Annotated[tuple[Name, ...], Meta(min_length=1, description='give a list of kinds, such as ["goal"]')]
VariableNames = Annotated[tuple[VariableName, ...], Meta(description="give a list of names of environment variables")]

SETTLED_STATES = (
    TaskState.DONE,
    TaskState.REVIEW,
    TaskState.BACKLOG,
    TaskState.READY,
    TaskState.BLOCKED,
)
"""The states that a task may be put into when its run has ended."""

SUCCESS_STATES = tuple(state for state in SETTLED_STATES if state is not TaskState.READY)
"""Those that a task which succeeded may be put into: made ready, it would run again for ever."""

State = Annotated[TaskState, Meta(description=f"give one of {', '.join(SETTLED_STATES)}")]
SuccessState = Annotated[TaskState, Meta(description=f"give one of {', '.join(SUCCESS_STATES)}")]


def _key(attribute: str) -> str:
    return UNIT_SUFFIXES.sub("", attribute)


class Section(Struct, frozen=True, kw_only=True, rename=_key):
    pass


class Center(Section, frozen=True, kw_only=True):
    state_dir: Directory = Path(".operations_center")
    ledger: Text = "sqlite"
    keep_ms: Duration = 30 * 86_400_000
    cgroup: Annotated[Literal["auto", "off"], Meta(description='give "auto" or "off"')] = "auto"


class BoardStates(Section, frozen=True, kw_only=True):
    backlog: Text | None = None
    ready: Text | None = None
    running: Text | None = None
    review: Text | None = None
    done: Text | None = None
    blocked: Text | None = None
    cancelled: Text | None = None


class Board(Section, frozen=True, kw_only=True):
    """Where tasks come from; every key but ``kind`` belongs to a board outside of this program."""

    kind: Text = "local"
    base_url: Url | None = None
    workspace: Text | None = None
    project: Text | None = None
    api_key_env: VariableName | None = None
    api_key_file: Directory | None = None
    kind_label: Text | None = None
    states: BoardStates | None = None
    poll_every_ms: PositiveDuration | None = None


class OnSuccess(Section, frozen=True, kw_only=True):
    state: SuccessState = TaskState.DONE
    follow_up: Name | None = None


class OnFailure(OnSuccess, frozen=True, kw_only=True):
    state: State = TaskState.BLOCKED


class RetryBackoff(Section, frozen=True, kw_only=True):
    initial_ms: Duration = 1_000
    factor: Factor = 2.0
    max_ms: Duration = 300_000


class Role(Section, frozen=True, kw_only=True):
    """A watcher process: which kinds of task it takes, and what it runs them through.

    ``max_interruptions`` bounds how often its runs may be ended by the machine or by us before a task is blocked;
    ``max_retries`` how often an executor may ask for a later retry before its task is blocked;
    ``max_follow_ups`` how many follow-ups, one of the other, may descend from a task.
    """

    name: str = ""
    backend: Name
    task_kinds: Kinds = ()
    poll_interval_ms: PositiveDuration = 30_000
    concurrency: AtLeastOne = 1
    on_success: OnSuccess = OnSuccess()
    on_failure: OnFailure = OnFailure()
    max_attempts: AtLeastOne = 3
    max_interruptions: AtLeastOne = 10
    max_retries: AtLeastZero = 20
    max_follow_ups: AtLeastZero = 20
    retry_backoff: RetryBackoff = RetryBackoff()

    def backoff_ms(self, attempt: int) -> int:
        """Milliseconds to wait after the given attempt (1-based) before the next."""
        backoff = self.retry_backoff
        if backoff.initial_ms == 0:
            return 0
        try:
            grown = backoff.initial_ms * float(backoff.factor) ** max(attempt - 1, 0)
        except OverflowError:
            return backoff.max_ms
        return int(min(grown, backoff.max_ms))


class Backend(Section, frozen=True, kw_only=True):
    """What tasks are run through, and how much of it may run: the keys that all kinds have.

    ``grace_ms`` is how long a run that was told to end may take to do so.
    """

    name: str = ""
    kind: Annotated[str, Meta(description='give "command" or "http_job"')]
    max_concurrent: AtLeastOne
    max_per_hour: AtLeastZero | None = None
    max_per_day: AtLeastZero | None = None
    min_available_memory_bytes: Size | None = None
    timeout_ms: PositiveDuration | None = None
    grace_ms: Duration = 10_000

    @property
    def limits(self) -> Limits:
        return Limits(
            max_concurrent=self.max_concurrent,
            max_per_hour=self.max_per_hour,
            max_per_day=self.max_per_day,
            min_available_memory=self.min_available_memory_bytes,
        )

    @property
    def longest_submission_ms(self) -> int:
        return 0


class Breaker(Section, frozen=True, kw_only=True):
    """When a command is left alone for a while; 0 failures: never."""

    failures: AtLeastZero = 5
    within_ms: PositiveDuration = 60_000
    cooldown_ms: PositiveDuration = 300_000


class CommandSettings(Backend, frozen=True, kw_only=True):
    """A command. ``max_output_bytes`` is how much is kept of what one run prints."""

    argv: Command
    stdin: Annotated[Literal["prompt", "none"], Meta(description='give "prompt" or "none"')] = "prompt"
    working_directory: Directory | None = None
    idle_timeout_ms: PositiveDuration | None = None
    max_output_bytes: OutputSize = 256 * 1024 * 1024
    env: VariableNames = ()
    breaker: Breaker = Breaker()

    @property
    def limits(self) -> Limits:
        breaker = self.breaker
        if breaker.failures == 0:
            return super().limits
        return replace(
            super().limits,
            breaker=admission.Breaker(breaker.failures, breaker.within_ms, breaker.cooldown_ms),
        )


class Watchdog(Section, frozen=True, kw_only=True):
    """The rules of health.

    A process that is alive has stalled after ``stalled_after_ms`` without a turn of its loop; nothing is admitted
    while the state directory's disk has less than ``min_free_disk_bytes``.
    """

    every_ms: PositiveDuration = 30_000
    stalled_after_ms: LongerThanABeat = 30_000
    min_free_disk_bytes: Size = 200 * 1024 * 1024


class CodePull(Section, frozen=True, kw_only=True):
    repository: Directory = Path()
    remote: Text = "origin"
    branch: Text = "main"
    every_ms: PositiveDuration = 60_000
    install: OptionalCommand = ()
    python: Word = ""
    preflight: Commands = ()
    canary_ms: Duration = 10_000
    keep: AtLeastOne = 5


class Web(Section, frozen=True, kw_only=True):
    listen: Listen = "127.0.0.1:8765"


SECTIONS: dict[str, type[Section]] = {
    "center": Center,
    "board": Board,
    "roles": Role,
    "backends": Backend,
    "watchdog": Watchdog,
    "code_pull": CodePull,
    "web": Web,
}
NAMED_SECTIONS = ("roles", "backends")
INACTIVE_SECTIONS = ("web",)


class Config(Struct, frozen=True, kw_only=True):
    """A configuration without a mistake. Roles and backends stand in the order of the file.

    ``inactive_sections`` are those that the file has and that this version checks but does not act on.
    """

    file: Path
    center: Center
    board: Board
    roles: dict[str, Role]
    backends: dict[str, Backend]
    watchdog: Watchdog
    code_pull: CodePull | None
    web: Web | None

    @property
    def directory(self) -> Path:
        return self.file.parent

    @property
    def inactive_sections(self) -> tuple[str, ...]:
        return tuple(name for name in INACTIVE_SECTIONS if getattr(self, name) is not None)

    @property
    def submissions_within_ms(self) -> int:
        """How long a process may take to end because a submission is under way; 0 without provider backends."""
        return max((backend.longest_submission_ms for backend in self.backends.values()), default=0)

    def role_for_kind(self, kind: str) -> Role | None:
        return next((role for role in self.roles.values() if kind in role.task_kinds), None)
