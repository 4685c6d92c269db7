"""What an answer of a provider makes of its run: an id, a doubt, an end, or the moment of the next question."""

import logging
from collections.abc import Mapping
from typing import Any

from operations_center.errors import BoardUnreachable
from operations_center.in_flight_reconcile.asking import Asked
from operations_center.in_flight_reconcile.job_records import (
    ending_found,
    note_of,
    note_unclaimed,
    record_doubt,
    record_findings,
    record_health,
    record_job,
)
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.model import HOLDS_SLOT, Outcome, Proof, Run
from operations_center.outcomes import Ending, ending_of_job
from operations_center.polling.followed import Changed, Followed
from operations_center.providers import Ill, InDoubt, Job, NotSubmitted, Provider, Submission
from operations_center.providers.health import pause_after_ms
from operations_center.providers.looking import Finding, Going, Over, Unsure

_log = logging.getLogger(__name__)

REMEMBER_EVERY_MS = 30_000
"""How often it is recorded that a job was heard of, when it says nothing new."""

Answer = Submission | Finding


class Recorder:
    """Of a poller. What is recorded raises LedgerBusy, BoardUnreachable, OSError or Changed."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings

    def present(self, followed: Followed) -> Run | None:
        """The run as it is now; None when it is not ours to go on with."""
        run = self._surroundings.ledger.run(followed.run_id)
        ours = run is not None and run.state in HOLDS_SLOT and run.watcher == self._surroundings.me
        return run if ours else None

    def record(self, followed: Followed, answer: Answer, provider: Provider) -> bool:
        """True when the run has ended with it."""
        if isinstance(answer, Job):
            self._job(followed, answer)
            followed.next_at = self._now() + provider.pause_ms(1, None)
            return False
        run = self.present(followed)
        if run is None:
            followed.is_over = True
            return False
        match answer:
            case NotSubmitted():
                return self.refusal(followed, run, answer)
            case InDoubt():
                return self._in_doubt(followed, run, answer)
            case Going():
                return self._going(followed, run, answer, provider)
            case Unsure():
                return self.unsure(followed, run, answer)
            case Over():
                return self._over(followed, run, answer)

    # Of a submission

    def _job(self, followed: Followed, job: Job) -> None:
        """An id that no run takes any more is kept as an event: it may cost money, and a person can cancel it."""
        surroundings = self._surroundings
        with surroundings.ledger.transaction():
            run = self.present(followed)
            if run is None:
                followed.is_over = True
                known = surroundings.ledger.run(followed.run_id)
                note_unclaimed(surroundings, followed.run_id, known.backend if known is not None else None, job)
            elif record_job(surroundings, run, job) is not None:
                record_health(surroundings, run.backend, None, None)

    def refusal(self, followed: Followed, run: Run, refused: NotSubmitted) -> bool:
        """Certain of this submission; of an earlier one in doubt it says nothing. True when the run has ended."""
        ill = Ill.THROTTLED if refused.throttled else None if refused.final else Ill.FAILING
        with self._surroundings.ledger.transaction():
            if ill is not None:
                record_health(self._surroundings, run.backend, ill, refused.retry_after_ms)
            settled = None if followed.again else self._settled(run, _ending_of_refusal(run, refused), None)
        if settled is not None:
            self._finish(followed, settled)
        elif refused.final:
            self._hold(followed, run, f"sent again, it was refused: {refused.reason}")
        else:
            followed.next_at = self._now() + max(pause_after_ms(followed.submissions), refused.retry_after_ms or 0)
        return settled is not None

    def _in_doubt(self, followed: Followed, run: Run, answer: InDoubt) -> bool:
        backend = self._surroundings.job_backends.get(run.backend)
        if backend is not None and backend.may_submit_again:
            followed.next_at = self._now() + pause_after_ms(followed.submissions)
        else:
            self._hold(followed, run, f"it may have been submitted: {answer.reason}")
        # Last: a doubt that cannot be written yet is recorded again, and would count twice.
        record_health(self._surroundings, run.backend, Ill.FAILING, None)
        return False

    def _hold(self, followed: Followed, run: Run, reason: str) -> None:
        """From now on it waits for a person."""
        if record_doubt(self._surroundings, run, reason) is None:
            raise Changed
        followed.is_over = True

    # Of a job

    def _going(self, followed: Followed, run: Run, going: Going, provider: Provider) -> bool:
        """Recorded when it is new, and now and then."""
        said = (going.heard.word, going.heard.progress)
        if said != followed.said:
            followed.asks = 1
            self._tell_of_unknown_word(followed, run, going)
        if said != followed.said or self._now() >= followed.remembered_at + REMEMBER_EVERY_MS:
            record_findings(self._surroundings, [Asked(run, going)])
            followed.said, followed.remembered_at = said, self._now()
        self._ask_after(followed, run, provider.pause_ms(followed.asks, going.heard.retry_after_ms))
        return False

    def unsure(self, followed: Followed, run: Run, unsure: Unsure) -> bool:
        """True when the run has ended: there was no time left to learn more."""
        with self._surroundings.ledger.transaction():
            memory = record_findings(self._surroundings, [Asked(run, unsure)])[run.run_id]
            # An answer from before its time was over says nothing of what came after, however late it is recorded.
            late = run.is_late(followed.asked_at, by_ms=run.grace_ms)
            ending = ending_found(run, unsure, memory, past_grace=late)
            settled = None if ending is None else self._settled(run, ending, note_of(run, unsure))
        if settled is not None:
            self._finish(followed, settled)
            return True
        followed.remembered_at = -REMEMBER_EVERY_MS  # that it answers again is news, whatever it says
        self._ask_after(followed, run, max(pause_after_ms(memory.failures), unsure.retry_after_ms or 0))
        return False

    def _over(self, followed: Followed, run: Run, over: Over) -> bool:
        ending = ending_of_job(run, over)
        with self._surroundings.ledger.transaction():
            record_findings(self._surroundings, [Asked(run, over)])
            settled = self._settled(run, ending, note_of(run, over))
        self._finish(followed, settled)
        return True

    def _ask_after(self, followed: Followed, run: Run, wait_ms: int) -> None:
        """A stop that came while the provider was asked has not reached it yet, and waits for nothing."""
        is_to_be_told = run.stop_outcome is not None and not followed.told_to_end
        followed.next_at = self._now() + (0 if is_to_be_told else wait_ms)

    def _tell_of_unknown_word(self, followed: Followed, run: Run, going: Going) -> None:
        word = going.heard.word
        if not going.heard.known and (followed.said is None or followed.said[0] != word):
            _log.warning("run %s: its provider says %s, which is taken for running", run.run_id, word)
            self._surroundings.ledger.note(
                "job.unknown_word", {"backend": run.backend, "word": word}, run_id=run.run_id
            )

    # Its end

    def end(self, followed: Followed, run: Run, ending: Ending) -> None:
        self._finish(followed, self._settled(run, ending, None))

    def _settled(self, run: Run, ending: Ending, note: Mapping[str, Any] | None) -> Run:
        settled = self._surroundings.settlement.settle(run, ending, self._surroundings.me, note)
        if settled is None:
            raise Changed
        return settled

    def _finish(self, followed: Followed, settled: Run) -> None:
        """Its board may be told later."""
        followed.is_over = True
        try:
            self._surroundings.settlement.finish_and_close([settled])
        except BoardUnreachable as error:
            _log.warning("%s", error)
        self._surroundings.wake_everybody()

    def _now(self) -> int:
        return self._surroundings.clock.now().monotonic


def _ending_of_refusal(run: Run, refused: NotSubmitted) -> Ending:
    if run.stop_outcome is not None:
        return Ending(run.stop_outcome, Proof.NEVER_SUBMITTED, run.stop_reason)
    if refused.final:
        return Ending(Outcome.FAILED, Proof.NEVER_SUBMITTED, f"its provider refuses it: {refused.reason}")
    wait_ms = refused.retry_after_ms or pause_after_ms(1)
    return Ending(Outcome.NEVER_STARTED, Proof.NEVER_SUBMITTED, refused.reason, retry_after_ms=wait_ms)
