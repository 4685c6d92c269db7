"""What a test may ask of the provider's server: how jobs go, and which answers go wrong."""

from typing import Any

from msgspec import Struct

WORDS = """
[backends.video.cancel]
url = "{{base_url}}/jobs/{{job_id}}/cancel"
[backends.video.status]
queued = "queued"
running = "running"
succeeded = "succeeded"
failed = "failed"
cancelled = "cancelled"
"""
"""How a job is cancelled there, and the words for its states: settings of a backend, to be formatted."""


class Course(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a job goes. It has ended after so many ``polls`` or, where that is given, so many ``seconds``.

    ``outputs`` and ``thumbnail`` are names of files; the contents are made from the job's id and the name, ``size``
    bytes each. The first ``expired`` URLs that are handed out for each file are no longer good when they are used.
    """

    polls: int = 1
    seconds: float | None = None
    before: tuple[str, ...] = ("queued", "running")
    end: str = "succeeded"
    error: Any = None
    outputs: tuple[str, ...] = ("film.mp4",)
    thumbnail: str | None = None
    size: int = 1000
    type: str = "video/mp4"
    expired: int = 0


class Provider(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What kind of a provider it is.

    ``latency`` (seconds) comes before each answer of the API. ``idempotent``: a second submission with the same
    Idempotency-Key answers with the first one's job; ``own_ids``: the job's id is the body's ``submission_id``, and a
    second submission with it is refused with 409. ``cancel_deletes``: to cancel a job that has ended deletes it and its
    outputs. ``hidden`` polls of a new job are answered with 404. ``secret`` is what Authorization must hold.
    """

    latency: float = 0.0
    idempotent: bool = False
    own_ids: bool = False
    cancel_deletes: bool = False
    hidden: int = 0
    secret: str | None = None
    course: Course = Course()


class Rule(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which requests are answered otherwise, and how.

    ``on`` is ``submit``, ``poll``, ``result``, ``cancel``, ``download`` or a request line such as
    ``GET /v1/jobs/1?a=b``. ``job`` is an id; ``match`` a text in the body of the submission. The first ``skip``
    requests are not meant, the next ``times`` are (None: all). The first rule that means a request decides.

    ``accept``: the provider does what it is asked, whatever it answers; so it does unless ``status`` is a refusal.
    ``delay`` seconds before the answer; ``drip``: that many seconds between the bytes of its body; ``vanish``: the
    connection is closed before the answer, ``reset``: by a reset; ``truncate``: closed after so many bytes of the body;
    ``endless``: the body has no end. ``forget``: there is no such job any more. ``word`` takes the place of the job's
    status. ``status``, ``headers`` and ``body`` make up an answer of its own, with ``{base}`` for the server's URL; a
    body that is not a string is sent as JSON.
    """

    on: str
    job: str | None = None
    match: str | None = None
    skip: int = 0
    times: int | None = None
    accept: bool | None = None
    delay: float = 0.0
    drip: float = 0.0
    vanish: bool = False
    reset: bool = False
    truncate: int | None = None
    endless: bool = False
    forget: bool = False
    word: str | None = None
    status: int | None = None
    headers: dict[str, str] = {}
    body: Any = None

    @property
    def is_accepted(self) -> bool:
        return self.accept if self.accept is not None else self.status is None or self.status < 400


class Submitted(Struct, kw_only=True):
    """A job as the provider remembers it. ``at`` is wall-clock seconds."""

    job_id: str
    at: float
    body: Any
    headers: dict[str, str]
    course: Course
    key: str | None = None
    polls: int = 0
    cancels: int = 0
    cancelled: bool = False
    forgotten: bool = False
    urls: dict[str, int] = {}


class Request(Struct, frozen=True, kw_only=True):
    """A request as it arrived. ``what`` it was: ``submit`` … ``download`` or ``other``."""

    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: str
    what: str
    job: str | None = None
