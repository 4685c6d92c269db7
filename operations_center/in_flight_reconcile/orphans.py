"""The one definition of an orphan: an ordered table, first match wins. Pure.

The numbers are the rows of the verdict table in ``docs/reconciliation.md``, which explains each of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from operations_center.in_flight_reconcile.facts import Evidence, JobFacts, LeaseState, Place, Sighting, Verdict
from operations_center.keeper.inspect import ExitRecord, GateState
from operations_center.model import Proof, TaskState

RESERVATION_YOUNG_MS = 10_000
"""As long as a live watcher may take between its admission and the keeper's gate."""

FINISHER_YOUNG_MS = 30_000
"""As long as a live finisher may take to tell the board."""

CHILDLESS_MS = 5_000
"""As long as a keeper may be without its executor: before it starts, and while it records the exit."""

RECORD_YOUNG_MS = 1_000
"""As long as a keeper may take to sync its record and to end."""

SUBMISSION_MARGIN_MS = 5_000
"""Beyond its timeout, for a submitter to record the answer."""

ALIVE, GONE, ANY = Sighting.ALIVE, Sighting.GONE, None


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: if the tree is as in ``tree`` and ``when`` holds, this is the verdict.

    ``proof`` says why a slot may be freed.
    """

    row: int
    tree: Sighting | None
    when: Callable[[Evidence], bool]
    verdict: Verdict
    reason: str
    proof: Proof | None = None


class Judgement(msgspec.Struct, frozen=True, gc=False):
    evidence: Evidence
    rule: Rule

    @property
    def verdict(self) -> Verdict:
        return self.rule.verdict


SETTLING_RUN = (
    Rule(
        1,
        ANY,
        lambda e: (
            (e.place is Place.HERE and e.watcher is ALIVE and e.settled_ms < FINISHER_YOUNG_MS)
            or (e.place is Place.ELSEWHERE and e.lease is LeaseState.VALID)
        ),
        Verdict.KEEP,
        "its finisher is telling the board",
    ),
    Rule(2, ANY, lambda e: True, Verdict.REPLAY, "nobody is telling the board how it ended"),
)


def _job(evidence: Evidence) -> JobFacts:
    assert evidence.job is not None
    return evidence.job


def _has_job(evidence: Evidence) -> bool:
    return evidence.run.provider_job_id is not None


def _not_begun(evidence: Evidence) -> bool:
    return evidence.run.submitting_at is None


def _is_submitting(evidence: Evidence) -> bool:
    return not _has_job(evidence) and evidence.run.doubt is None


PROVIDER_RUN = (
    Rule(
        3,
        ANY,
        lambda e: (
            _not_begun(e)
            and e.poller is ALIVE
            and (e.place is Place.ELSEWHERE or 0 <= e.reserved_ms < RESERVATION_YOUNG_MS)
        ),
        Verdict.KEEP,
        "its watcher is about to submit it",
    ),
    Rule(
        4,
        ANY,
        _not_begun,
        Verdict.ORPHAN,
        "its submission was not begun, and cannot be after this",
        Proof.NEVER_SUBMITTED,
    ),
    Rule(
        5,
        ANY,
        lambda e: (
            _is_submitting(e)
            and e.poller is ALIVE
            and (e.place is Place.ELSEWHERE or e.submitting_ms < _job(e).submit_timeout_ms + SUBMISSION_MARGIN_MS)
        ),
        Verdict.KEEP,
        "it is being submitted",
    ),
    Rule(
        6,
        ANY,
        lambda e: _is_submitting(e) and e.poller is not GONE,
        Verdict.SUSPECT,
        "its submission has no answer in time, and whoever submits it is not proven dead",
    ),
    Rule(
        7,
        ANY,
        lambda e: not _has_job(e) and e.overdue,
        Verdict.UNKNOWABLE,
        "nobody has said within its timeout whether there is a job",
        Proof.DEADLINE_PASSED,
    ),
    Rule(
        8,
        ANY,
        lambda e: _is_submitting(e) and _job(e).may_submit_again,
        Verdict.RESUBMIT,
        "its submission has no answer, and may be sent again with the same key",
    ),
    Rule(
        8,
        ANY,
        lambda e: not _has_job(e),
        Verdict.UNKNOWABLE,
        "it may have been submitted: only a person can find out, and `resolve` it",
    ),
    Rule(
        10,
        ANY,
        lambda e: e.poller is ALIVE and e.run.stop_outcome is None and e.not_wanted,
        Verdict.STOP,
        "it is not wanted any more, and its poller is to be told",
    ),
    Rule(
        9,
        ANY,
        lambda e: e.poller is ALIVE or (e.place is Place.ELSEWHERE and e.lease is LeaseState.VALID),
        Verdict.KEEP,
        "its job is polled",
    ),
    Rule(
        11,
        ANY,
        lambda e: not _job(e).may_ask,
        Verdict.ADOPT,
        "its poller is dead; a watcher of the role goes on polling",
    ),
    Rule(
        10,
        ANY,
        lambda e: e.task in (TaskState.CANCELLED, TaskState.DONE),
        Verdict.CANCEL,
        "the board says that its task is not wanted any more, and nobody polls its job",
    ),
    Rule(
        10,
        ANY,
        lambda e: e.not_wanted,
        Verdict.STOP,
        "it is to stop, and nobody polls its job",
    ),
    Rule(
        12,
        ANY,
        lambda e: True,
        Verdict.ASK_PROVIDER,
        "nobody polls its job, and its provider may be asked",
    ),
)

COMMAND_RUN = (
    Rule(
        13,
        ANY,
        lambda e: e.place is Place.ELSEWHERE and e.lease is LeaseState.VALID,
        Verdict.KEEP,
        "another host holds it and its lease is valid",
    ),
    Rule(
        14,
        ANY,
        lambda e: e.place is Place.ELSEWHERE and e.lease is LeaseState.EXPIRED,
        Verdict.ORPHAN,
        "the lease of its host has expired, past kill time and margin",
        Proof.LEASE_EXPIRED,
    ),
    Rule(
        15,
        ANY,
        lambda e: (
            (e.place is Place.ELSEWHERE and e.lease is LeaseState.NONE)
            or (e.place is Place.OTHER_BOOT and e.lease is LeaseState.CLASH)
        ),
        Verdict.SUSPECT,
        "identity_clash: its host has no lease to judge by, or another boot renews this host's identity",
    ),
    Rule(
        16,
        ANY,
        lambda e: e.place is Place.OTHER_BOOT and (e.exit_recorded or e.valid_result),
        Verdict.SETTLE,
        "it ended before the reboot and left an exit record",
        Proof.BOOT_CHANGED,
    ),
    Rule(
        17,
        ANY,
        lambda e: e.place is Place.OTHER_BOOT,
        Verdict.ORPHAN,
        "the host has been rebooted since",
        Proof.BOOT_CHANGED,
    ),
    Rule(
        18,
        ANY,
        lambda e: (
            (e.not_begun or e.tree is ALIVE)
            and (e.run.keeper is None and e.gate is GateState.ABSENT)
            and (e.watcher is ALIVE and e.reserved_ms < RESERVATION_YOUNG_MS)
        ),
        Verdict.KEEP,
        "its watcher is about to start it, or to record its start",
    ),
    Rule(
        19,
        ANY,
        lambda e: e.not_begun,
        Verdict.ORPHAN,
        "no keeper has passed its gate, and none can after this",
        Proof.NEVER_STARTED,
    ),
    Rule(
        20,
        ALIVE,
        lambda e: not e.exit_recorded and (e.run.stop_outcome is not None or e.past_deadline or e.past_idle_timeout),
        Verdict.STOP,
        "it is to stop, and its processes are alive",
    ),
    Rule(
        21,
        ALIVE,
        lambda e: not e.exit_recorded and e.task in (TaskState.CANCELLED, TaskState.DONE),
        Verdict.CANCEL,
        "the board says that its task is not wanted any more",
    ),
    Rule(
        22,
        ALIVE,
        lambda e: (
            e.keeper is ALIVE
            and (
                e.exit_age_ms < RECORD_YOUNG_MS
                if e.exit_recorded
                else e.executor is GONE and e.childless_ms < CHILDLESS_MS
            )
        ),
        Verdict.KEEP,
        "its executor is about to start, or has just ended",
    ),
    Rule(
        23,
        ALIVE,
        lambda e: e.exit_recorded or e.keeper is GONE or e.executor is GONE,
        Verdict.REAP,
        "its executor or its keeper is gone, and processes are left",
    ),
    Rule(
        24,
        ALIVE,
        lambda e: e.watcher is ALIVE,
        Verdict.KEEP,
        "it runs and its watcher is alive",
    ),
    Rule(
        25,
        ALIVE,
        lambda e: e.watcher is GONE,
        Verdict.ADOPT,
        "it runs and its watcher is dead",
    ),
    Rule(
        26,
        GONE,
        lambda e: isinstance(e.exit_record, ExitRecord) or (not e.exit_recorded and e.valid_result),
        Verdict.SETTLE,
        "its processes are gone and it left a record of how it ended",
        Proof.EXIT_RECORDED,
    ),
    Rule(
        27,
        GONE,
        lambda e: e.exit_recorded,
        Verdict.SETTLE,
        "its processes are gone and its exit record cannot be read",
        Proof.PROCESS_GONE,
    ),
    Rule(
        28,
        GONE,
        lambda e: e.directory is GONE,
        Verdict.UNKNOWABLE,
        "its processes are gone, and its run directory with whatever it recorded",
        Proof.PROCESS_GONE,
    ),
    Rule(
        29,
        GONE,
        lambda e: e.directory is ALIVE,
        Verdict.ORPHAN,
        "its processes are gone and left no record",
        Proof.PROCESS_GONE,
    ),
    Rule(30, ANY, lambda e: True, Verdict.SUSPECT, "what was seen proves neither life nor death"),
)

_COMMAND_RUN_BY_TREE = {tree: [rule for rule in COMMAND_RUN if rule.tree in (ANY, tree)] for tree in Sighting}


def judge(evidence: Iterable[Evidence]) -> list[Judgement]:
    """A verdict for each open run, in the order given."""
    return [judge_one(each) for each in evidence]


def _rules(evidence: Evidence) -> Sequence[Rule]:
    if evidence.settling:
        return SETTLING_RUN
    return PROVIDER_RUN if evidence.run.is_job else _COMMAND_RUN_BY_TREE[evidence.tree]


def judge_one(evidence: Evidence) -> Judgement:
    for rule in _rules(evidence):
        if rule.when(evidence):
            return Judgement(evidence, rule)
    raise AssertionError("the last rule of a table takes everything")
