"""A watcher's provider runs: submitted, polled, fetched and ended, with the watcher's loop never waiting for a network.

Threads talk to providers and know nothing of the ledger. Their answers come back through a queue, and all that is
written is written by the loop. What a run needs next is read from the ledger each time: one that was just admitted, one
that is polled and one that a dead watcher has left are the same thing.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import msgspec

from operations_center.errors import OperationsCenterError
from operations_center.files import decode_json, read_file
from operations_center.in_flight_reconcile.asking import artifacts_of, job_of, no_backend
from operations_center.in_flight_reconcile.plan import LATE
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.model import Outcome, Proof, Run, RunState
from operations_center.outcomes import Ending
from operations_center.polling.followed import Changed, Followed
from operations_center.polling.recording import Answer, Recorder
from operations_center.polling.requests import Requests
from operations_center.providers import InDoubt, JobBackend, NotSubmitted, Order, Provider
from operations_center.providers.health import LONGEST_PAUSE_MS, not_before
from operations_center.providers.looking import Unsure, look_after

_log = logging.getLogger(__name__)

ROOM_LATER_MS = 100
"""While no thread is free for a submission: what the ledger knows as being submitted leaves at once."""

RECORD_AGAIN_MS = 1_000
"""After an answer that could not be recorded."""

LOOK_AGAIN_MS = 1_000
"""Whether a pause is over."""

CANNOT_SUBMIT_MS = 60_000
"""After a fault on our side, such as a secret that is missing."""


GIVEN_LIMIT = 64 * 1024 * 1024
"""Bytes of a task as it was given to a run."""


class _Given(msgspec.Struct):
    title: str
    body: str = ""


@dataclass(frozen=True)
class _Answered:
    followed: Followed
    requests: Requests
    provider: Provider
    answer: Answer


class Poller:
    """Of one process. ``fileno`` is readable when there are answers to take."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._recorder = Recorder(surroundings)
        self._followed: dict[str, Followed] = {}
        self._answers: SimpleQueue[_Answered] = SimpleQueue()
        self._unrecorded: list[_Answered] = []
        self._record_at: int | None = None
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Apart from the others: their time runs, and one that waits behind downloads would be left in doubt.
        self._submissions = Requests(at_once=True)
        self._questions = Requests(at_once=False)

    def fileno(self) -> int:
        return self._event

    def follow(self, run_id: str) -> None:
        """From now on the run is looked after; nothing changes for one that is."""
        self._followed.setdefault(run_id, Followed(run_id))

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
            except Changed:
                pass
            self._record_at = 0 if self._unrecorded else None
        for followed in list(self._followed.values()) if begin else ():
            if not followed.busy and followed.next_at is not None and self._is_due(followed.next_at):
                with suppress(Changed):
                    self._begin(followed)
                self._forget_if_over(followed)
        return ended

    def _record(self, answered: _Answered) -> bool:
        """True when the run has ended with it."""
        followed = answered.followed
        ended = self._recorder.record(followed, answered.answer, answered.provider)
        answered.requests.under_way -= 1
        followed.busy = False
        self._forget_if_over(followed)
        return ended

    def _forget_if_over(self, followed: Followed) -> None:
        if followed.is_over:
            self.forget(followed.run_id)

    def _take_answers(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        while True:
            try:
                self._unrecorded.append(self._answers.get_nowait())
            except Empty:
                return

    # Beginning

    def _begin(self, followed: Followed) -> None:
        run = self._recorder.present(followed)
        if run is None:
            followed.is_over = True
            return
        backend = self._surroundings.job_backends.get(run.backend)
        followed.asked_at = self._now()
        if run.doubt is not None:
            followed.next_at = None
            return
        if backend is None:
            self._recorder.unsure(followed, run, no_backend(run))
            return
        if run.provider_job_id is None and run.submitting_at is not None and run.is_late(self._now()):
            self._recorder.end(followed, run, Ending(Outcome.UNKNOWN, Proof.DEADLINE_PASSED, LATE))
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

    def _pause_before(self, run: Run, followed: Followed) -> int | None:
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
        is_new_here = followed.said is None and followed.asks == 0
        return self._left_alone_ms(run, now) if is_new_here and run.stop_outcome is None else None

    def _left_alone_ms(self, run: Run, now: int) -> int | None:
        """What an earlier poller has learned holds on: for how long its job is not to be asked for."""
        memory = self._surroundings.ledger.jobs([run.run_id]).get(run.run_id)
        if memory is None or memory.ask_at is None or memory.ask_at <= now:
            return None
        return min(memory.ask_at - now, LONGEST_PAUSE_MS)

    def _submit(self, followed: Followed, run: Run, backend: JobBackend) -> None:
        """The ledger knows first that the submission begins: whoever dies from here on leaves a doubt behind."""
        followed.again = run.submitting_at is not None
        if not followed.again and run.stop_outcome is not None:
            self._recorder.end(followed, run, Ending(run.stop_outcome, Proof.NEVER_SUBMITTED, run.stop_reason))
            return
        if followed.again and not backend.may_submit_again:
            # The next reconciliation judges it, and asks a person.
            followed.next_at = None
            return
        try:
            provider, order = backend.provider, self._order(run)
        except (OperationsCenterError, OSError, ValueError, KeyError, TypeError) as error:
            refused = NotSubmitted(f"cannot submit it: {error}", final=False, retry_after_ms=CANNOT_SUBMIT_MS)
            self._recorder.refusal(followed, run, refused)
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
            raise Changed
        followed.submissions += 1
        again = followed.again
        self._request(self._submissions, followed, provider, lambda: provider.submit(order, again=again), InDoubt)

    def _order(self, run: Run) -> Order:
        """As the run was given it: since its first submission the task may have been edited."""
        task = self._surroundings.board.task(run.task_id) if run.submitting_at is None else None
        if task is None:
            path = f"{self._surroundings.directory_of(run.run_id)}/task.json"
            given = decode_json(read_file(path, GIVEN_LIMIT), _Given)
            title, body = given.title, given.body
        else:
            title, body = task.title, task.body
        prompt = f"{title}\n\n{body}" if body else title
        return Order(run.run_id, run.task_id, title, body, prompt, run.attempt, run.fence)

    def _ask(self, followed: Followed, run: Run, backend: JobBackend) -> None:
        try:
            provider = backend.provider
        except OperationsCenterError as error:
            self._recorder.unsure(followed, run, Unsure(str(error)))
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
        requests: Requests,
        followed: Followed,
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

    # Time

    def _now(self) -> int:
        return self._surroundings.clock.now().monotonic

    def _is_due(self, moment: int) -> bool:
        return self._now() >= moment
