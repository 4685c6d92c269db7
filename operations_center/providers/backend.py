"""A backend whose runs are jobs at a provider."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from operations_center.admission import Limits
from operations_center.config import HttpJobSettings
from operations_center.providers import Provider

HTTP_JOB = "http_job"


@dataclass(frozen=True)
class HttpJobBackend:
    """``environment`` is where its secret is looked for."""

    settings: HttpJobSettings
    environment: Mapping[str, str]

    @property
    def kind(self) -> str:
        return HTTP_JOB

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    @property
    def timeout_ms(self) -> int | None:
        return self.settings.timeout_ms

    @property
    def grace_ms(self) -> int:
        return self.settings.grace_ms

    @property
    def asks_by_itself(self) -> bool:
        return self.settings.reconcile == "auto"

    @property
    def min_age_ms(self) -> int:
        return self.settings.min_age_ms

    @property
    def may_submit_again(self) -> bool:
        return self.settings.idempotency_header is not None or self.settings.own_id is not None

    @property
    def can_cancel(self) -> bool:
        return self.settings.can_cancel

    @property
    def submit_timeout_ms(self) -> int:
        return self.settings.submit_timeout_ms

    @cached_property
    def provider(self) -> Provider:
        from operations_center.providers.http import HttpProvider  # noqa: PLC0415 - only who asks pays for it

        return HttpProvider(self.settings, self.environment)
