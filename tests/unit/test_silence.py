"""How long a run has printed nothing: seen by sizes, not counting what this process did not see."""

from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from operations_center.clock import Now
from operations_center.heart import Awake
from operations_center.in_flight_reconcile.silence import Silence
from operations_center.model import Run
from tests.unit.samples import RUN


@dataclass
class Moment:
    monotonic: int = 0
    sizes: tuple[int, ...] | None = (0, 0)

    def now(self) -> Now:
        return Now(0, self.monotonic)


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Moment:
    moment = Moment()
    monkeypatch.setattr("operations_center.in_flight_reconcile.silence.sizes_of", lambda _: moment.sizes)
    return moment


@pytest.fixture
def run() -> Run:
    return replace(RUN, keeper_pid=7, keeper_ticks=7, idle_timeout_ms=10_000)


def looked(silence: Silence, moment: Moment, run: Run, until: int) -> int:
    """Look once a second; the silence at the end."""
    for at in range(moment.monotonic, until + 1, 1000):
        moment.monotonic = at
        silent = silence.of(run)
    return silent


def test_silence_grows_until_something_is_printed(moment: Moment, run: Run) -> None:
    silence = Silence(Awake(moment))
    assert looked(silence, moment, run, 9_000) == 9_000
    assert not silence.is_over(run)
    moment.sizes = (0, 1)
    assert looked(silence, moment, run, 12_000) == 3_000
    assert looked(silence, moment, run, 19_000) == 10_000
    assert silence.is_over(run)


def test_time_in_which_we_were_suspended_is_no_silence(moment: Moment, run: Run) -> None:
    silence = Silence(Awake(moment))
    looked(silence, moment, run, 5_000)
    moment.monotonic = 60_000
    assert silence.of(run) == 0
    assert looked(silence, moment, run, 63_000) == 3_000


def test_nothing_is_silent_that_cannot_be_seen_or_has_no_limit(moment: Moment, run: Run) -> None:
    silence = Silence(Awake(moment))
    looked(silence, moment, run, 20_000)
    assert silence.of(replace(run, idle_timeout_ms=None)) == 0
    assert not silence.is_over(replace(run, idle_timeout_ms=None))
    moment.sizes = None
    assert silence.of(run) == 0
    moment.sizes = (0, 0)
    assert looked(silence, moment, run, 21_000) == 1_000
