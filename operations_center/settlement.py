"""The one gate through which every run ends: settle → finish → close.

*Settle* records the outcome and frees the slot; *finish* tells the board; *close* lets the task go. Each
step is durable before the next begins, and each may be repeated: a run that died in between is taken up by
the next reconciliation, which tells the board the very same thing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from operations_center.admission import Breaker
from operations_center.boards import Board
from operations_center.clock import Clock, Now
from operations_center.config import Role
from operations_center.identity import Process
from operations_center.ledger import Change, Ledger
from operations_center.model import COUNTED_AS_ATTEMPT, Attempts, Finish, Health, Run, RunState, in_one_reason
from operations_center.outcomes import Ending, finish_of, shows_that_backend_works
from operations_center.providers.health import after_run


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A run that is proven to have ended, and what the log keeps of the proof."""

    run: Run
    ending: Ending
    note: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """``policy_of`` maps a role's name to its policy; ``breaker_of`` a backend's to when it is left alone, if ever."""

    ledger: Ledger
    board: Board
    clock: Clock
    policy_of: Callable[[str], Role]
    breaker_of: Callable[[str], Breaker | None]

    def end(self, run: Run, ending: Ending, finisher: Process, note: Mapping[str, Any] | None = None) -> Run | None:
        """All three steps. None when somebody else has changed the run; raises BoardUnreachable after settling."""
        settled = self.settle(run, ending, finisher, note)
        if settled is None:
            return None
        closed = self.finish_and_close([settled])
        return closed[0] if closed else None

    def settle(self, run: Run, ending: Ending, finisher: Process, note: Mapping[str, Any] | None = None) -> Run | None:
        """Record the outcome and free the slot; None when somebody else has changed the run."""
        (settled,) = self.settle_all([Ended(run, ending, note)], finisher)
        return settled

    def settle_all(self, ended: Sequence[Ended], finisher: Process) -> list[Run | None]:
        """The same of many runs in one transaction; each is won or lost for itself."""
        now = self.clock.now()
        with self.ledger.transaction():
            attempts = self.ledger.attempts_of([each.run.task_id for each in ended])
            changes, remembered = [], []
            for each in ended:
                before = attempts.get(each.run.task_id, _NO_ATTEMPTS)
                policy = self.policy_of(each.run.role)
                finish, after = finish_of(each.run, each.ending, before, policy=policy, now=now.wall)
                changes.append(Change(each.run, _settled(each, finish, finisher, now), each.note))
                remembered.append(after if after != before or each.ending.outcome in COUNTED_AS_ATTEMPT else None)
            settled = self.ledger.change_runs("run.settled", changes)
            self.ledger.set_attempts_of(
                {
                    run.task_id: after
                    for run, after in zip(settled, remembered, strict=True)
                    if run is not None and after is not None
                }
            )
            self._judge_backends([each for each, run in zip(ended, settled, strict=True) if run is not None], now.wall)
        return settled

    def _judge_backends(self, ended: Sequence[Ended], now: int) -> None:
        """A command whose runs fail at once, one after the other, is left alone for a while."""
        for each in ended:
            run, breaker = each.run, self.breaker_of(each.run.backend)
            if run.is_job or breaker is None:
                continue
            before = self.ledger.health().get(run.backend)
            works = shows_that_backend_works(run, each.ending, breaker.within_ms, now)
            after = after_run(before, works, breaker, each.ending.reason, now)
            if after != before:
                self.ledger.set_health(run.backend, after)
                self._tell_of_breaker(run.backend, before, after)

    def _tell_of_breaker(self, backend: str, before: Health | None, after: Health | None) -> None:
        if after is not None and after.broken_until is not None:
            told = {"backend": backend, "until": after.broken_until, "reason": after.reason}
            self.ledger.note("breaker.opened", told)
        elif before is not None and before.broken_until is not None:
            self.ledger.note("breaker.closed", {"backend": backend})

    def resolve(self, run: Run, ending: Ending, finisher: Process, note: Mapping[str, Any]) -> Run | None:
        """Settle a run anew that has closed as unknown, with what a person says; None where things have gone on.

        Its task must still be blocked by it. The unknown attempt is not counted beside the one that it turns out to be.
        """
        now, ended = self.clock.now(), Ended(run, ending, note)
        with self.ledger.transaction():
            (last,) = self.ledger.recent_runs(task_id=run.task_id, backend=None, limit=1)
            if last != run or not self.board.hold(run.task_id, run.run_id):
                return None
            counted = self.ledger.attempts_of([run.task_id]).get(run.task_id, _NO_ATTEMPTS)
            before = msgspec.structs.replace(counted, attempts=max(counted.attempts - 1, 0))
            finish, after = finish_of(run, ending, before, policy=self.policy_of(run.role), now=now.wall)
            columns = _settled(ended, finish, finisher, now) | {"closed_at": None}
            resolved = self.ledger.change_run(run, "run.resolved", note=note, **columns)
            self.ledger.set_attempts_of({run.task_id: after})
        return resolved

    def take_over_all(self, runs: Sequence[Run], finisher: Process) -> list[Run | None]:
        """Become the one who tells the board about settled runs; None where somebody else was quicker."""
        now = self.clock.now().monotonic
        return self.ledger.change_runs(
            "run.finish_taken_over",
            [
                Change(
                    run,
                    {
                        "holder": run.holder + 1,
                        "watcher_pid": finisher.pid,
                        "watcher_ticks": finisher.start_ticks,
                        "settled_mono": now,
                    },
                )
                for run in runs
            ],
        )

    def finish_and_close(self, settled: Sequence[Run]) -> list[Run]:
        """Tell the board, then let the tasks go; the runs that were closed. Raises BoardUnreachable."""
        refused = self.board.finish({run.run_id: (run.task_id, _finish_of(run)) for run in settled})
        closed = {"state": RunState.CLOSED, "closed_at": self.clock.now().wall}
        changes = [Change(run, closed | _with_refused(run, refused.get(run.run_id))) for run in settled]
        return _present(self.ledger.change_runs("run.closed", changes))


_NO_ATTEMPTS = Attempts()


def _settled(ended: Ended, finish: Finish, finisher: Process, now: Now) -> dict[str, Any]:
    """The columns of a run that has settled."""
    run, ending = ended.run, ended.ending
    return {
        "state": RunState.SETTLING,
        "holder": run.holder + 1,
        "watcher_pid": finisher.pid,
        "watcher_ticks": finisher.start_ticks,
        "outcome": ending.outcome,
        "proof": ending.proof,
        "exit_code": ending.exit_code,
        "reason": ending.reason,
        "finish": finish,
        "settled_at": now.wall,
        "settled_mono": now.monotonic,
    }


def _with_refused(run: Run, refused: str | None) -> dict[str, Any]:
    """What the board did not take is told in the run's reason."""
    return {"reason": in_one_reason(run.reason, refused)} if refused else {}


def _finish_of(run: Run) -> Finish:
    assert run.finish is not None
    return run.finish


def _present(runs: Iterable[Run | None]) -> list[Run]:
    return [run for run in runs if run is not None]
