"""Run one target over many inputs, and tell what was found."""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import hypothesis
import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky

from fuzz.sandbox import Hang, Sandbox, time_limit

PAUSES = 5
"""So many hangs that did not come again are a fault."""

LONGEST_LINE = 400
"""Characters of a line of a report: an input may be megabytes long."""


class Target(Protocol):
    """One reader of what somebody else may write. ``attempt`` raises for every fault that it sees."""

    @property
    def inputs(self) -> st.SearchStrategy[Any]: ...

    def attempt(self, value: Any) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Finding:
    """A fault: ``report`` is the smallest input that Hypothesis found for it, with the traceback."""

    target: str
    report: str


@dataclass(frozen=True)
class Outcome:
    """``tried`` counts inputs."""

    tried: int
    finding: Finding | None


def run_target(name: str, make: Callable[[Sandbox], Target], count: int, seed: int) -> Outcome:
    """Try ``count`` inputs; stop at the first fault.

    A hang that does not come again with the same input is no fault: a machine that has much else to do may pause us.
    Many of them are one.
    """
    tried = pauses = 0
    logging.disable(logging.CRITICAL)
    try:
        while tried < count:
            attempt = _Attempt(make)
            report = attempt.run(count - tried, seed + pauses)
            tried += attempt.tried
            if report is None:
                break
            pauses += 1
            if not attempt.was_paused or pauses > PAUSES:
                return Outcome(tried, Finding(name, report))
    finally:
        logging.disable(logging.NOTSET)
    return Outcome(tried, None)


class _Attempt:
    """One call of Hypothesis, in a sandbox of its own."""

    def __init__(self, make: Callable[[Sandbox], Target]) -> None:
        self._make = make
        self.tried = 0
        self.was_paused = False

    def run(self, count: int, seed: int) -> str | None:
        """Return the report of the first fault, None when there is none."""
        with Sandbox() as sandbox:
            target = self._make(sandbox)

            @hypothesis.seed(seed)
            @settings(
                max_examples=count,
                database=None,
                deadline=None,
                phases=[Phase.generate, Phase.shrink],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.given(target.inputs)
            def try_each(value: Any) -> None:
                self.tried += 1
                with time_limit():
                    target.attempt(value)
                sandbox.refuse_harm()

            try:
                try_each()
            except Exception as error:
                self.was_paused = isinstance(error, Flaky) and _is_hang(error)
                return _report()
            finally:
                target.close()
        return None


def _report() -> str:
    return "\n".join(line[:LONGEST_LINE] for line in traceback.format_exc().splitlines())


def _is_hang(error: BaseException) -> bool:
    causes: list[BaseException] = [error]
    while causes:
        cause = causes.pop()
        if isinstance(cause, Hang):
            return True
        causes += [each for each in (cause.__cause__, cause.__context__) if each is not None]
        causes += getattr(cause, "exceptions", ())
    return False
