"""A watcher's provider runs: submitted, polled, fetched and ended, with the watcher's loop never waiting for a network.

Threads talk to providers and know nothing of the ledger. Their answers come back through a queue, and all that is
written is written by the loop. What a run needs next is read from the ledger each time: one that was just admitted, one
that is polled and one that a dead watcher has left are the same thing.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from operations_center.errors import BoardUnreachable, OperationsCenterError
from operations_center.in_flight_reconcile.evidence import Surroundings
from operations_center.in_flight_reconcile.jobs import (
    Asked,
    artifacts_of,
    ending_found,
    job_of,
    no_backend,
    note_of,
    note_unclaimed,
    record_doubt,
    record_findings,
    record_health,
    record_job,
)
from operations_center.in_flight_reconcile.plan import LATE
from operations_center.keeper.inspect import read_file_of
from operations_center.model import HOLDS_SLOT, Outcome, Proof, Run, RunState
from operations_center.outcomes import Ending
from operations_center.providers import Ill, InDoubt, Job, JobBackend, NotSubmitted, Order, Provider, Submission
from operations_center.providers.health import LONGEST_PAUSE_MS, not_before, pause_after_ms
from operations_center.providers.looking import Finding, Going, Unsure, look_after

_log = logging.getLogger(__name__)

THREADS = 16
"""Questions and downloads at the same time, and submissions beside them."""

ROOM_LATER_MS = 100
"""While no thread is free for a submission: what the ledger knows as being submitted leaves at once."""

RECORD_AGAIN_MS = 1_000
"""After an answer that could not be recorded."""

LOOK_AGAIN_MS = 1_000
"""Whether a pause is over."""

CANNOT_SUBMIT_MS = 60_000
"""After a fault on our side, such as a secret that is missing."""

REMEMBER_EVERY_MS = 30_000
"""How often it is recorded that a job was heard of, when it says nothing new."""

Answer = Submission | Finding


@dataclass
class _Followed:
    """A run between two requests. Moments in monotonic ms; ``next_at`` None waits for a person.

    ``asks`` in a row that told nothing new; ``again``: an earlier submission of the run is in doubt.
    """

    run_id: str
    next_at: int | None = 0
    busy: bool = False
    again: bool = False
    submissions: int = 0
    asks: int = 0
    said: tuple[str, float | None] | None = None
    remembered_at: int = 0
    told_to_end: bool = False


class _Changed(Exception):
    """Somebody has changed the run since it was read. It may be ours all the same, as with a stop: look again."""


@dataclass(frozen=True)
class _Answered:
    followed: _Followed
    requests: "_Requests"
    provider: Provider
    answer: Answer


class Poller:
    """Of one process. ``fileno`` is readable when there are answers to take."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._followed: dict[str, _Followed] = {}
        self._answers: SimpleQueue[_Answered] = SimpleQueue()
        self._unrecorded: list[_Answered] = []
        self._record_at: int | None = None
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Apart from the others: their time runs, and one that waits behind downloads would be left in doubt.
        self._submissions = _Requests(at_once=True)
        self._questions = _Requests(at_once=False)

    def fileno(self) -> int:
        return self._event

    def follow(self, run_id: str) -> None:
        """From now on the run is looked after; nothing changes for one that is."""
        self._followed.setdefault(run_id, _Followed(run_id))

    def forget(self, run_id: str) -> None:
        self._followed.pop(run_id, None)

    def look_soon(self, run_id: str) -> None:
        """Its run is to stop, and the provider has not been told."""
        followed = self._followed.get(run_id)
        if followed is not None and not followed.busy and not followed.told_to_end:
            followed.next_at = 0

    @property
    def due_at(self) -> int | None:
        """When there is something to do (monotonic ms)."""
        moments = [each.next_at for each in self._followed.values() if not each.busy and each.next_at is not None]
        return min([*moments, *([self._record_at] if self._record_at is not None else [])], default=None)

    @property
    def is_submitting(self) -> bool:
        """Whether an answer is awaited, or not yet recorded, that must not be lost, whatever became of its run."""
        return self._submissions.under_way > 0

    def turn(self, *, begin: bool = True) -> bool:
        """Record what was answered, and begin what is due; whether a run has ended.

        Raises LedgerBusy, BoardUnreachable and OSError: the answer is then recorded in a later turn.
        """
        self._take_answers()
        ended = False
        while self._unrecorded and self._is_due(self._record_at or 0):
            self._record_at = self._now() + RECORD_AGAIN_MS
            try:
                ended |= self._record(self._unrecorded[0])
                del self._unrecorded[0]
            except _Changed:
                pass
            self._record_at = 0 if self._unrecorded else None
        for followed in list(self._followed.values()) if begin else ():
            if not followed.busy and followed.next_at is not None and self._is_due(followed.next_at):
                with suppress(_Changed):
                    self._begin(followed)
        return ended

    def _take_answers(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        while True:
            try:
                self._unrecorded.append(self._answers.get_nowait())
            except Empty:
                return

    # Beginning

    def _begin(self, followed: _Followed) -> None:
        run = self._present(followed)
        if run is None:
            self.forget(followed.run_id)
            return
        backend = self._surroundings.job_backends.get(run.backend)
        if run.doubt is not None:
            followed.next_at = None
            return
        if backend is None:
            self._record_finding(followed, run, no_backend(run), None)
            return
        if run.provider_job_id is None and run.submitting_at is not None and self._is_overdue(run):
            self._end(run, Ending(Outcome.UNKNOWN, Proof.DEADLINE_PASSED, LATE), None)
            return
        wait_ms = self._pause_before(run, followed)
        requests = self._submissions if run.provider_job_id is None else self._questions
        if wait_ms is None and not requests.has_room():
            wait_ms = ROOM_LATER_MS
        if wait_ms is not None:
            followed.next_at = self._now() + wait_ms
        elif run.provider_job_id is None:
            self._submit(followed, run, backend)
        else:
            self._ask(followed, run, backend)

    def _present(self, followed: _Followed) -> Run | None:
        """The run as it is now; None when it is not ours to go on with."""
        run = self._surroundings.ledger.run(followed.run_id)
        ours = run is not None and run.state in HOLDS_SLOT and run.watcher == self._surroundings.me
        return run if ours else None

    def _pause_before(self, run: Run, followed: _Followed) -> int | None:
        """How long its provider is to be left alone. A first submission was admitted, another asks for itself."""
        if run.submitting_at is None:
            return None
        ledger, now = self._surroundings.ledger, self._surroundings.clock.now().wall
        until = not_before(ledger.health().get(run.backend), now)
        if until is not None:
            return max(until - now, 100)
        if run.provider_job_id is None:
            paused = any(pause.name in ("*", run.role, run.backend) for pause in ledger.pauses())
            return LOOK_AGAIN_MS if paused else None
        # What an earlier poller has learned, also that its job is to be left alone.
        memory = ledger.jobs([run.run_id]).get(run.run_id) if followed.said is None and not run.stop_outcome else None
        left_alone = memory.ask_at - now if memory is not None and memory.ask_at is not None else 0
        return min(left_alone, LONGEST_PAUSE_MS) if left_alone > 0 and followed.asks == 0 else None

    def _submit(self, followed: _Followed, run: Run, backend: JobBackend) -> None:
        """The ledger knows first that the submission begins: whoever dies from here on leaves a doubt behind."""
        followed.again = run.submitting_at is not None
        if not followed.again and run.stop_outcome is not None:
            self._end(run, Ending(run.stop_outcome, Proof.NEVER_SUBMITTED, run.stop_reason), None)
            return
        if followed.again and not backend.may_submit_again:
            # The next reconciliation judges it, and asks a person.
            followed.next_at = None
            return
        try:
            provider, order = backend.provider, self._order(run)
        except (OperationsCenterError, OSError, ValueError, KeyError, TypeError) as error:
            refused = NotSubmitted(f"cannot submit it: {error}", final=False, retry_after_ms=CANNOT_SUBMIT_MS)
            self._record_refusal(followed, run, refused)
            return
        now = self._surroundings.clock.now()
        submitting = self._surroundings.ledger.change_run(
            run,
            "run.submitting",
            state=RunState.RUNNING,
            submitting_at=now.wall,
            submitting_mono=now.monotonic,
            started_at=run.started_at or now.wall,
        )
        if submitting is None:
            raise _Changed
        followed.submissions += 1
        again = followed.again
        self._request(self._submissions, followed, provider, lambda: provider.submit(order, again=again), InDoubt)

    def _order(self, run: Run) -> Order:
        """As the run was given it: the task may have been edited since."""
        task = msgspec.json.decode(read_file_of(f"{self._surroundings.directory_of(run.run_id)}/task.json"))
        title, body = str(task["title"]), str(task["body"])
        prompt = f"{title}\n\n{body}" if body else title
        return Order(run.run_id, run.task_id, title, body, prompt, run.attempt, run.fence)

    def _ask(self, followed: _Followed, run: Run, backend: JobBackend) -> None:
        try:
            provider = backend.provider
        except OperationsCenterError as error:
            self._record_finding(followed, run, Unsure(str(error)), None)
            return
        job = job_of(run, self._surroundings.ledger.jobs([run.run_id]).get(run.run_id))
        artifacts, end = artifacts_of(self._surroundings, run), run.stop_outcome is not None
        followed.asks += 1
        followed.told_to_end = end
        self._request(
            self._questions, followed, provider, lambda: look_after(provider, job, artifacts, end=end), Unsure
        )

    def _request(
        self,
        requests: "_Requests",
        followed: _Followed,
        provider: Provider,
        request: Callable[[], Answer],
        defect: Callable[[str], Answer],
    ) -> None:
        """``defect`` makes an answer of an exception: a request is never without one."""
        followed.busy = True

        def answer() -> None:
            try:
                got = request()
            except Exception as error:
                _log.exception("the request for run %s failed", followed.run_id)
                got = defect(f"{type(error).__name__} in the request")
            self._answers.put(_Answered(followed, requests, provider, got))
            os.eventfd_write(self._event, 1)

        requests.put(answer)

    # Recording

    def _record(self, answered: _Answered) -> bool:
        """True when the run has ended with it."""
        followed, answer = answered.followed, answered.answer
        with self._surroundings.ledger.transaction():
            run = self._present(followed)
            if isinstance(answer, Job):
                self._record_job(followed, run, answer)
        if isinstance(answer, Job):
            followed.next_at = self._now() + answered.provider.pause_ms(1, None)
        ended = False
        if run is None:
            self.forget(followed.run_id)
        elif isinstance(answer, NotSubmitted):
            ended = self._record_refusal(followed, run, answer)
        elif isinstance(answer, InDoubt):
            self._record_doubt(followed, run, answer)
        elif not isinstance(answer, Job):
            ended = self._record_finding(followed, run, answer, answered.provider)
        answered.requests.under_way -= 1
        followed.busy = False
        return ended

    def _record_job(self, followed: _Followed, run: Run | None, job: Job) -> None:
        """An id that no run takes any more is kept as an event: it may cost money, and a person can cancel it."""
        surroundings = self._surroundings
        if run is None:
            known = surroundings.ledger.run(followed.run_id)
            note_unclaimed(surroundings, followed.run_id, known.backend if known is not None else None, job)
        elif record_job(surroundings, run, job) is not None:
            record_health(surroundings, run.backend, None, None)

    def _record_refusal(self, followed: _Followed, run: Run, refused: NotSubmitted) -> bool:
        """Certain of this submission; of an earlier one in doubt it says nothing."""
        ill = Ill.THROTTLED if refused.throttled else None if refused.final else Ill.FAILING
        if ill is not None:
            record_health(self._surroundings, run.backend, ill, refused.retry_after_ms)
        if followed.again:
            if refused.final:
                self._doubt(followed, run, f"sent again, it was refused: {refused.reason}")
            else:
                followed.next_at = self._now() + max(pause_after_ms(followed.submissions), refused.retry_after_ms or 0)
            return False
        if run.stop_outcome is not None:
            ending = Ending(run.stop_outcome, Proof.NEVER_SUBMITTED, run.stop_reason)
        elif refused.final:
            ending = Ending(Outcome.FAILED, Proof.NEVER_SUBMITTED, f"its provider refuses it: {refused.reason}")
        else:
            wait_ms = refused.retry_after_ms or pause_after_ms(1)
            ending = Ending(Outcome.NEVER_STARTED, Proof.NEVER_SUBMITTED, refused.reason, retry_after_ms=wait_ms)
        return self._end(run, ending, None)

    def _record_doubt(self, followed: _Followed, run: Run, answer: InDoubt) -> None:
        record_health(self._surroundings, run.backend, Ill.FAILING, None)
        backend = self._surroundings.job_backends.get(run.backend)
        if backend is not None and backend.may_submit_again:
            followed.next_at = self._now() + pause_after_ms(followed.submissions)
        else:
            self._doubt(followed, run, f"it may have been submitted: {answer.reason}")

    def _doubt(self, followed: _Followed, run: Run, reason: str) -> None:
        """From now on it waits for a person."""
        if record_doubt(self._surroundings, run, reason) is None:
            raise _Changed
        self.forget(followed.run_id)

    def _record_finding(self, followed: _Followed, run: Run, finding: Finding, provider: Provider | None) -> bool:
        """``provider`` is None where it could not even be asked."""
        memory = None
        if not isinstance(finding, Going):
            memory = record_findings(self._surroundings, [Asked(run, finding)]).get(run.run_id)
        ending = ending_found(run, finding, memory, past_grace=self._past_grace(run))
        if ending is not None:
            return self._end(run, ending, note_of(run, finding))
        if isinstance(finding, Going):
            assert provider is not None
            wait_ms = self._heard(followed, run, finding, provider)
        else:
            assert isinstance(finding, Unsure)
            assert memory is not None
            wait_ms = max(pause_after_ms(memory.failures), finding.retry_after_ms or 0)
            followed.remembered_at = -REMEMBER_EVERY_MS  # that it answers again is news, whatever it says
        # A stop that came while the provider was asked has not reached it yet.
        is_to_be_told = run.stop_outcome is not None and not followed.told_to_end
        followed.next_at = self._now() + (0 if is_to_be_told else wait_ms)
        return False

    def _heard(self, followed: _Followed, run: Run, going: Going, provider: Provider) -> int:
        """Recorded when it is new, and now and then; how long to wait."""
        said = (going.heard.word, going.heard.progress)
        if said != followed.said:
            followed.asks = 1
            self._tell_of_unknown_word(followed, run, going)
        if said != followed.said or self._is_due(followed.remembered_at + REMEMBER_EVERY_MS):
            record_findings(self._surroundings, [Asked(run, going)])
            followed.said, followed.remembered_at = said, self._now()
        return provider.pause_ms(followed.asks, going.heard.retry_after_ms)

    def _tell_of_unknown_word(self, followed: _Followed, run: Run, going: Going) -> None:
        word = going.heard.word
        if not going.heard.known and (followed.said is None or followed.said[0] != word):
            _log.warning("run %s: its provider says %s, which is taken for running", run.run_id, word)
            self._surroundings.ledger.note(
                "job.unknown_word", {"backend": run.backend, "word": word}, run_id=run.run_id
            )

    def _is_overdue(self, run: Run) -> bool:
        return run.deadline_mono is not None and self._now() > run.deadline_mono

    def _past_grace(self, run: Run) -> bool:
        deadline = run.deadline_mono
        return deadline is not None and self._now() > deadline + run.grace_ms

    def _end(self, run: Run, ending: Ending, note: Mapping[str, Any] | None) -> bool:
        """Settled as what the run is now; its board may be told later."""
        settled = self._surroundings.settlement.settle(run, ending, self._surroundings.me, note)
        if settled is None:
            raise _Changed
        self.forget(run.run_id)
        try:
            self._surroundings.settlement.finish_and_close([settled])
        except BoardUnreachable as error:
            _log.warning("%s", error)
        self._surroundings.wake_everybody()
        return True

    # Time

    def _now(self) -> int:
        return self._surroundings.clock.now().monotonic

    def _is_due(self, moment: int) -> bool:
        return self._now() >= moment


class _Requests:
    """Threads that end with their process, whatever a provider takes its time for.

    ``at_once``: none of the requests waits for a thread. ``under_way`` are those whose answers are not recorded.
    """

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = 0
        self.under_way = 0

    def has_room(self) -> bool:
        """Whether a request may be put; a thread more is started if need be, as far as the machine has one."""
        if self.under_way < self._threads or self._start_thread():
            return True
        return self._threads > 0 and not self._at_once

    def put(self, request: Callable[[], None]) -> None:
        self.under_way += 1
        self._waiting.put(request)

    def _start_thread(self) -> bool:
        if self._threads == THREADS:
            return False
        try:
            threading.Thread(target=self._work, name=f"provider {self._threads}", daemon=True).start()
        except RuntimeError as error:
            _log.warning("cannot start a thread for provider runs: %s", error)
            return False
        self._threads += 1
        return True

    def _work(self) -> None:
        while True:
            self._waiting.get()()
