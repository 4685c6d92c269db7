"""A provider: somebody else's machine that runs jobs for us. What it is asked, and what its answers can mean.

Nothing is decided here. An answer becomes one of a few values, and whoever asked acts on it: before ``submit`` the
ledger knows that a submission has begun, and the job's id is in it before anything else is done with the answer.

Every method of a ``Provider`` blocks until there is an answer or its own time is over, may be called by several threads
at once, and raises nothing that a provider or a network can cause. No value holds a secret or a payload; reasons are
one line, made of what the provider said, cut to ``LONGEST_REASON`` characters.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

LONGEST_REASON = 300


class JobState(StrEnum):
    """What a provider's own word for the state of a job is mapped to. A word that is unknown means RUNNING."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})
"""States that do not change any more. Such a job is never cancelled: some providers then delete what it has made."""


class Order(msgspec.Struct, frozen=True):
    """What is to be submitted for a run; a backend's templates are filled from it."""

    run_id: str
    task_id: str
    title: str
    body: str
    prompt: str
    attempt: int
    fence: int


class Job(msgspec.Struct, frozen=True):
    """A job that was submitted. ``urls`` are those that the provider gave: ``status``, ``result``, ``cancel``."""

    job_id: str
    urls: Mapping[str, str] = {}


class NotSubmitted(msgspec.Struct, frozen=True):
    """Certain: the request never left, or was refused. ``final``: the same request would be refused again."""

    reason: str
    final: bool
    throttled: bool = False
    retry_after_ms: int | None = None


class InDoubt(msgspec.Struct, frozen=True):
    """The request may have arrived, and there is no id: nobody here can know whether there is a job."""

    reason: str


Submission = Job | NotSubmitted | InDoubt


class Kind(StrEnum):
    OUTPUT = "output"
    THUMBNAIL = "thumbnail"


class Output(msgspec.Struct, frozen=True):
    """Something that a job has made. ``name`` is the file's in ``artifacts/``: checked, and unique in the job."""

    url: str
    name: str
    kind: Kind


class Heard(msgspec.Struct, frozen=True):
    """What a provider says of a job. ``progress`` is from 0 to 1; ``outputs`` only of one that has ended.

    ``known`` is False for a word that the backend's map does not have.
    """

    state: JobState
    word: str
    known: bool = True
    progress: float | None = None
    reason: str | None = None
    outputs: tuple[Output, ...] = ()
    retry_after_ms: int | None = None


class Ill(StrEnum):
    """Why an answer says nothing of the job."""

    NOT_FOUND = "not_found"
    UNAUTHORIZED = "unauthorized"
    THROTTLED = "throttled"
    FAILING = "failing"
    UNREADABLE = "unreadable"


class Trouble(msgspec.Struct, frozen=True):
    """NOT_FOUND: 404 and 410. FAILING: 5xx, no connection, no answer in time. UNREADABLE: of another shape."""

    ill: Ill
    reason: str
    retry_after_ms: int | None = None


class Artifact(msgspec.Struct, frozen=True):
    """A file in ``artifacts/``: whole, synced and renamed into place. ``size`` in bytes, ``sha256`` in hex.

    ``note`` says what is odd about it, such as a coding that it still has.
    """

    name: str
    kind: Kind
    size: int
    sha256: str
    note: str | None = None


class Missed(msgspec.Struct, frozen=True):
    """A download that failed. ``expired``: its URL is no longer good, the provider may give another.

    ``final``: it is refused for what it is, such as its size, its type or its host, and would be again.
    """

    reason: str
    expired: bool = False
    final: bool = False
    retry_after_ms: int | None = None


class Provider(Protocol):
    def submit(self, order: Order, *, again: bool) -> Submission:
        """``again``: an earlier submission for this run is in doubt; only where its backend takes one twice."""

    def ask(self, job: Job) -> Heard | Trouble: ...
    @property
    def can_cancel(self) -> bool: ...
    def cancel(self, job: Job) -> Trouble | None:
        """Only of a job that has just been heard of as not ended, and only where it ``can_cancel``."""

    def download(self, output: Output, directory: Path) -> Artifact | Missed:
        """Into ``directory``, which exists. A file that is there under its name is replaced."""

    def pause_ms(self, asked: int, retry_after_ms: int | None) -> int:
        """How long to wait after the n-th (1-based) ask in a row that told nothing new; with jitter."""


class JobBackend(Protocol):
    """What is known of a backend whose runs are jobs at a provider, also where nobody needs to ask it anything.

    ``asks_by_itself``: the provider may be asked out of turn without a person, about jobs older than ``min_age_ms``.
    ``may_submit_again``: a second submission for the same run makes no second job. ``can_cancel``: it names a way to
    cancel a job. After ``submit_timeout_ms`` a submission has an answer, whatever the network does.
    """

    @property
    def asks_by_itself(self) -> bool: ...
    @property
    def min_age_ms(self) -> int: ...
    @property
    def may_submit_again(self) -> bool: ...
    @property
    def can_cancel(self) -> bool: ...
    @property
    def submit_timeout_ms(self) -> int: ...
    @property
    def provider(self) -> Provider:
        """Raises OperationsCenterError where its secret is not to be had."""
