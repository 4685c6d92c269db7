"""What may be written for a backend whose runs are jobs at a provider: ``kind = "http_job"``.

A *template* is a string with placeholders (``placeholders.py``), an *expression* is JMESPath into an answer of the
provider. The meaning of each key: ``docs/providers.md``.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta

from operations_center.config.sections import (
    PORT,
    AtLeastOne,
    Backend,
    Directory,
    Duration,
    Factor,
    PositiveDuration,
    Section,
    Size,
    Text,
    Url,
    VariableName,
)

JOB_STATES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
"""What a provider's words may be mapped to."""

Template = Annotated[str, Meta(pattern=r"\A[^\0]+\Z", description="give a string, such as one with {run_id}")]
UrlTemplate = Annotated[
    str,
    Meta(
        pattern=r"\A(?:https?://|\{base_url\})[^\s\0]*\Z",
        description='give an http or https URL, or one that begins with "{base_url}"',
    ),
]
Expression = Annotated[str, Meta(pattern=r"\A[^\0]+\Z", description='give a JMESPath expression, such as "data.id"')]
HeaderName = Annotated[
    str, Meta(pattern=r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z", description='give the name of a header, such as "X-Key"')
]
Headers = Annotated[
    dict[HeaderName, Annotated[str, Meta(pattern=r"\A[\x20-\x7e]*\Z")]],
    Meta(description='give a table of names and values, such as { Authorization = "Bearer {secret}" }'),
]
Words = Annotated[
    dict[Text, Text],
    Meta(description='give a table of the provider\'s words, such as { done = "succeeded", error = "failed" }'),
]
Hosts = Annotated[
    tuple[
        Annotated[
            str,
            Meta(
                pattern=rf"\A(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?::{PORT})?\Z"
                rf"|\A[0-9A-Fa-f:]+\Z|\A\[[0-9A-Fa-f:]+\](?::{PORT})?\Z"
            ),
        ],
        ...,
    ],
    Meta(description='give a list of hosts, such as ["cdn.example.org", "*.example.net", "files.example.org:8443"]'),
]
ContentTypes = Annotated[
    tuple[Annotated[str, Meta(pattern=r"\A[A-Za-z0-9.+-]+/(?:[A-Za-z0-9.+-]+|\*)\Z")], ...],
    Meta(description='give a list of content types, such as ["video/*", "image/png"]'),
]
Scale = Annotated[float, Meta(gt=0, le=1e9, description="give the number that means all is done, such as 100")]


class Submit(Section, frozen=True, kw_only=True):
    url: UrlTemplate
    method: Annotated[Literal["POST", "PUT"], Meta(description='give "POST" or "PUT"')] = "POST"
    headers: Headers | None = None
    json: Annotated[Any, Meta(description="give a table or a list, which is sent as JSON")] = None


class Urls(Section, frozen=True, kw_only=True):
    """Where the answer to a submission holds URLs of the job."""

    status: Expression | None = None
    result: Expression | None = None
    cancel: Expression | None = None


class Poll(Section, frozen=True, kw_only=True):
    url: UrlTemplate | None = None
    status: Expression
    initial_ms: PositiveDuration = 2_000
    factor: Factor = 1.5
    max_ms: PositiveDuration = 30_000
    timeout_ms: PositiveDuration = 30_000


class Result(Section, frozen=True, kw_only=True):
    url: UrlTemplate | None = None


class Cancel(Section, frozen=True, kw_only=True):
    url: UrlTemplate | None = None
    method: Annotated[Literal["POST", "PUT", "DELETE"], Meta(description='give "POST", "PUT" or "DELETE"')] = "POST"


class HttpJobSettings(Backend, frozen=True, kw_only=True):
    """A provider's API."""

    preset: Text | None = None
    base_url: Url | None = None
    secret_env: VariableName | None = None
    secret_file: Directory | None = None
    submit: Submit
    submit_timeout_ms: PositiveDuration = 30_000
    idempotency_header: HeaderName | None = None
    own_id: Template | None = None
    job_id: Expression | None = None
    urls: Urls = Urls()
    poll: Poll
    status: Words
    failure: Expression | None = None
    error: Expression | None = None
    progress: Expression | None = None
    progress_scale: Scale = 1.0
    result: Result | None = None
    cancel: Cancel | None = None
    outputs: Expression | None = None
    thumbnails: Expression | None = None
    output_hosts: Hosts = ()
    output_types: ContentTypes = ()
    max_output_size_bytes: Size = 2 << 30
    most_outputs: AtLeastOne = 100
    download_timeout_ms: PositiveDuration = 1_800_000
    timeout_ms: PositiveDuration = 86_400_000
    grace_ms: Duration = 300_000
    reconcile: Annotated[Literal["manual", "auto"], Meta(description='give "manual" or "auto"')] = "manual"
    min_age_ms: Duration = 600_000

    @property
    def longest_submission_ms(self) -> int:
        return self.submit_timeout_ms

    @property
    def has_result(self) -> bool:
        """Whether what a job has made is told by a further request."""
        return self.result is not None or self.urls.result is not None

    @property
    def can_cancel(self) -> bool:
        return self.cancel is not None or self.urls.cancel is not None
