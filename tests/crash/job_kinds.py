"""The providers that a job may meet, and how it goes there."""

from typing import NamedTuple

import msgspec

from tests.providers.remote import Remote
from tests.providers.script import WORDS, Course, Provider

CONFIG = (
    """
[center]
cgroup = "off"
[roles.goal]
backend = "video"
concurrency = 20
poll_interval = "10s"
retry_backoff = {{ initial = "0s" }}
[backends.video]
kind = "http_job"
base_url = "{url}"
submit_timeout = "20s"
job_id = "id"
{more}
error = "error"
outputs = "outputs[].url"
thumbnails = "thumbnail_url"
max_concurrent = {cap}
timeout = "1h"
grace = "1s"
[backends.video.submit]
url = "{{base_url}}/jobs"
headers = {{ X-Run = "{{run_id}}" }}
json = {{ prompt = "{{prompt}}"{field} }}
[backends.video.poll]
url = "{{base_url}}/jobs/{{job_id}}"
status = "status"
timeout = "20s"
initial = "2ms"
max = "5ms"
"""
    + WORDS
)

FILES = ("a.mp4", "b.mp4")
NAMES = {"output-1.mp4": "a.mp4", "output-2.mp4": "b.mp4", "thumbnail-1.jpg": "t.jpg"}
SIZE = 5000
SUCCEEDS = Course(polls=2, outputs=FILES, thumbnail="t.jpg", size=SIZE)
ENDS_AT_ONCE = msgspec.structs.replace(SUCCEEDS, polls=1)
FAILS = Course(polls=9, end="failed", error="no such model")
"""Polled longer, for nothing is fetched: where kinds rotate from point to point, none is to end long before others."""


class Kind(NamedTuple):
    """What a provider takes, and how it goes there. ``vanishes``: it closes the connection after the first request."""

    key: str = ""
    field: str = ""
    course: Course = SUCCEEDS
    vanishes: bool = False

    @property
    def takes_again(self) -> bool:
        return bool(self.key)

    @property
    def provider(self) -> Provider:
        return Provider(idempotent="idempotency" in self.key, own_ids="own_id" in self.key, course=self.course)

    def config(self, remote: Remote, cap: int) -> str:
        return CONFIG.format(url=remote.url, more=self.key, field=self.field, cap=cap)


KEY = Kind('idempotency_header = "Idempotency-Key"')
OWN_ID = Kind('own_id = "run-{run_id}"', ', submission_id = "{job_id}"')
KINDS = {
    "takes no key": Kind(),
    "takes a key": KEY,
    "takes an id of ours": OWN_ID,
    "fails the job": Kind(course=FAILS),
    "vanishes after accepting": Kind(vanishes=True),
    "takes a key and vanishes": KEY._replace(vanishes=True),
    "takes an id of ours and vanishes": OWN_ID._replace(vanishes=True),
}
