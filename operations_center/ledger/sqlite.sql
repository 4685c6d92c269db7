-- name: insert_run
-- A reserved run takes its slot from here on. {columns} are those that it has already.
INSERT INTO runs ({columns}) VALUES ({values});

-- name: write_run
-- Every transition but the first, provided that nobody has changed the run since it was read. {columns} are those that
-- the transition changes: an index of the others is then not touched.
UPDATE runs SET ({columns}) = ({values}) WHERE fence = ? AND run_id = ? AND holder = ? AND state = ?;

-- name: run_by_id
-- One run. Its id begins with its fence.
SELECT * FROM runs WHERE fence = CAST(substr(:run_id, 2) AS INTEGER) AND run_id = :run_id;

-- name: open_runs
-- Every run that holds its task, oldest first. By the index of the open ones: those that are closed are many.
SELECT * FROM runs
WHERE fence IN (SELECT fence FROM runs WHERE state <> 'closed')
    AND (:role IS NULL OR role = :role) AND (:backend IS NULL OR backend = :backend)
ORDER BY fence;

-- name: tasks_with_slot
-- The tasks whose runs may still be executing.
SELECT task_id FROM runs
WHERE state <> 'closed' AND state <> 'settling' AND (:backend IS NULL OR backend = :backend);

-- name: recent_runs
-- Runs of any state, newest first.
SELECT * FROM runs
WHERE (:task_id IS NULL OR task_id = :task_id) AND (:backend IS NULL OR backend = :backend)
ORDER BY fence DESC LIMIT :limit;

-- name: closed_before
-- Closed runs that retention no longer wants, oldest first. None was closed before it was reserved. By two clocks: the
-- wall clock, and what was seen to pass, which is exact for a run of this boot and else goes by its last event.
SELECT run_id FROM runs
WHERE reserved_at <= :before AND state = 'closed' AND closed_at < :before
    AND CASE
        WHEN boot_id = :boot_id AND settled_mono IS NOT NULL
        THEN settled_mono + max(0, closed_at - settled_at) < :mono_before
        ELSE coalesce((SELECT max(seq) FROM events WHERE run_id = runs.run_id), 0) <= :last_event
    END
ORDER BY reserved_at LIMIT :limit;

-- name: slots_held
-- Slots that each backend's open runs hold.
SELECT backend, count(*) AS held FROM runs WHERE state <> 'closed' AND state <> 'settling' GROUP BY backend;

-- name: open_run_of_task
-- The run that holds a task.
SELECT run_id FROM runs WHERE task_id = :task_id AND state <> 'closed';

-- name: admission_facts
-- What the tables say about one admission, in one statement. Slots that are taken are counted, never kept in a counter
-- that could leak; a hold out of the future is from before the clock was set back.
SELECT
    (SELECT run_id FROM runs WHERE task_id = :task_id AND state <> 'closed') AS open_run,
    EXISTS (SELECT * FROM task_holds WHERE task_id = :task_id AND since <= :now AND until > :now) AS task_held,
    (SELECT count(*) FROM runs WHERE backend = :backend AND state <> 'closed' AND state <> 'settling') AS slots_held,
    EXISTS (SELECT * FROM pauses) AS paused,
    EXISTS (SELECT * FROM wishes WHERE backend = :backend) AS wishes,
    cooldown_until,
    broken_until,
    reason,
    coalesce(attempts, 0) AS attempts,
    coalesce(retries, 0) AS retries,
    not_before,
    attempts.since,
    coalesce(interruptions, 0) AS interruptions
FROM (SELECT :task_id AS task_id) LEFT JOIN attempts USING (task_id)
    LEFT JOIN backend_health ON backend_health.backend = :backend AND backend_health.since <= :now;

-- name: probe
-- The run that tries a backend again after its breaker was open, as long as it holds its slot.
SELECT run_id, reserved_at FROM runs
WHERE backend = :backend AND state <> 'closed' AND state <> 'settling' AND reserved_at >= :broken_until
ORDER BY reserved_at LIMIT 1;

-- name: wishes_ahead
-- What other roles wait to start on a backend and is more urgent, and how many runs more each role may have. A role that
-- is paused cannot start, and one that has not taken a slot in time is not waited for.
SELECT role, task_id, offered_at,
    at_once - (
        SELECT count(*) FROM runs
        WHERE runs.role = wishes.role AND state <> 'closed' AND state <> 'settling' AND doubt IS NULL
    ) AS room
FROM wishes
WHERE backend = :backend AND role <> :role
    AND (urgency, length(task_id), task_id) < (:urgency, length(:task_id), :task_id)
    AND role NOT IN (SELECT name FROM pauses)
    AND (offered_at IS NULL OR (offered_at > :given_up_at AND offered_at <= :now))
ORDER BY urgency, length(task_id), task_id;

-- name: offer
-- A free slot is left to these roles from now on.
UPDATE wishes SET offered_at = :now
WHERE backend = :backend AND offered_at IS NULL AND role IN (SELECT value FROM json_each(:roles));

-- name: end_offer
-- The role has come to ask.
UPDATE wishes SET offered_at = NULL WHERE backend = :backend AND role = :role AND offered_at IS NOT NULL;

-- name: grant_wish
-- The task has its slot.
DELETE FROM wishes WHERE backend = :backend AND role = :role AND task_id = :task_id;

-- name: wishes_of_role
-- What was announced last.
SELECT backend, task_id, urgency, at_once FROM wishes WHERE role = :role;

-- name: forget_wishes
-- What was announced last does not hold any more.
DELETE FROM wishes WHERE role = :role;

-- name: wish
-- A task that a role waits to start.
INSERT INTO wishes (backend, role, task_id, urgency, at_once) VALUES (:backend, :role, :task_id, :urgency, :at_once);

-- name: jobs_of
-- What was last heard of some runs' jobs.
SELECT jobs.* FROM json_each(:run_ids) JOIN jobs ON run_id = value;

-- name: remember_job
-- What was heard of a job, in place of what was heard before.
INSERT INTO jobs (run_id, urls, word, progress, heard_at, failures, trouble, ask_at)
VALUES (:run_id, :urls, :word, :progress, :heard_at, :failures, :trouble, :ask_at)
ON CONFLICT (run_id) DO UPDATE SET
    urls = excluded.urls, word = excluded.word, progress = excluded.progress, heard_at = excluded.heard_at,
    failures = excluded.failures, trouble = excluded.trouble, ask_at = excluded.ask_at;

-- name: forget_job
-- Retention: with its run.
DELETE FROM jobs WHERE run_id = :run_id;

-- name: health
-- Backends that fail, or whose providers take no more.
SELECT backend, failures, since, cooldown_until, broken_until, reason FROM backend_health;

-- name: set_health
-- A backend failed, or its provider asked to be left alone for a while.
INSERT INTO backend_health (backend, failures, since, cooldown_until, broken_until, reason)
VALUES (:backend, :failures, :since, :cooldown_until, :broken_until, :reason)
ON CONFLICT (backend) DO UPDATE SET
    failures = excluded.failures, since = excluded.since, cooldown_until = excluded.cooldown_until,
    broken_until = excluded.broken_until, reason = excluded.reason;

-- name: forget_health
-- A provider has answered as it should, or a command has done its work.
DELETE FROM backend_health WHERE backend = :backend;

-- name: admitted_since
-- What counts against a budget. A run that proves never to have started costs nothing; one that was forgotten gives
-- nothing back. In this boot an admission is as old as the monotonic clock says, and at most by the time older that the
-- machine has slept: a wall clock that was set changes nothing. Of another boot only the wall clock tells, and an
-- admission out of its future is from before it was set back. The newest runs have the highest fences, so none is looked
-- at that is older than the first which is more than a day old.
WITH aged AS NOT MATERIALIZED (
    SELECT fence, backend, outcome,
        CASE WHEN boot_id = :boot_id
            THEN max(:mono - reserved_mono, min(:now - reserved_at, :mono - reserved_mono + :slept))
            ELSE :now - reserved_at
        END AS age
    FROM runs
)
SELECT
    coalesce(sum(age < :hour), 0) AS in_last_hour,
    count(*) AS in_last_day
FROM (
    SELECT age FROM aged
    WHERE fence > coalesce((SELECT fence FROM aged WHERE fence > 0 AND age >= :day ORDER BY fence DESC LIMIT 1), 0)
        AND age >= 0 AND backend = :backend AND outcome IS NOT 'never_started'
    UNION ALL
    SELECT :now - at FROM forgotten_admissions WHERE at > :now - :day AND at <= :now AND backend = :backend
);

-- name: keep_admission
-- A run that is about to be forgotten, as long as a budget may look back at it.
INSERT INTO forgotten_admissions (backend, at)
SELECT backend, reserved_at FROM runs
WHERE fence = CAST(substr(:run_id, 2) AS INTEGER) AND run_id = :run_id AND state = 'closed'
    AND reserved_at >= :day_ago AND outcome IS NOT 'never_started';

-- name: forget_admissions
-- No budget looks back further than a day.
DELETE FROM forgotten_admissions WHERE at < :day_ago;

-- name: attempts_of
-- What is remembered of tasks between their runs.
SELECT task_id, attempts, retries, not_before, since, coalesce(interruptions, 0)
FROM json_each(:task_ids) JOIN attempts ON task_id = value;

-- name: set_attempts
-- Count an attempt, begin a backoff, or forget both.
INSERT INTO attempts (task_id, attempts, retries, not_before, since, interruptions) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (task_id) DO UPDATE SET
    attempts = excluded.attempts, retries = excluded.retries, not_before = excluded.not_before,
    since = excluded.since, interruptions = excluded.interruptions;

-- name: all_attempts
-- For the comparison with the event log.
SELECT * FROM attempts;

-- name: all_runs
-- For the comparison with the event log.
SELECT * FROM runs;

-- name: all_tasks
-- For the comparison with the event log: the columns that the log keeps.
SELECT task_id, number, title, kind, body, state, priority, backend, parent, depth, lineage, reason, claimed_by, origin,
    created_at, updated_at
FROM tasks;

-- name: all_releases
-- For the comparison with the event log: the columns that the log keeps.
SELECT "commit", state, reason, at, ledger_schema FROM releases;

-- name: hold_task
-- Keep admission off a task while the board is told about it.
INSERT INTO task_holds (task_id, since, until) VALUES (:task_id, :since, :until)
ON CONFLICT (task_id) DO UPDATE SET since = excluded.since, until = excluded.until;

-- name: release_task
-- The board has been told.
DELETE FROM task_holds WHERE task_id = :task_id;

-- name: pauses
-- Every pause in force.
SELECT name, source, reason, since FROM pauses ORDER BY since, name;

-- name: pause
-- Begin a pause; one that is in force keeps its beginning.
INSERT INTO pauses (name, source, reason, since) VALUES (:name, :source, :reason, :since)
ON CONFLICT (name, source) DO UPDATE SET reason = excluded.reason;

-- name: resume
-- End pauses of one source: of one name, or of all.
DELETE FROM pauses WHERE source = :source AND (:name IS NULL OR name = :name) RETURNING name;

-- name: renew_lease
-- This host lives.
INSERT INTO hosts (host_id, pid_namespace, boot_id, name, renewed_at, lease_until, renewed_mono)
VALUES (:host_id, :pid_namespace, :boot_id, :name, :renewed_at, :lease_until, :renewed_mono)
ON CONFLICT (host_id, pid_namespace) DO UPDATE SET
    boot_id = excluded.boot_id, name = excluded.name, renewed_at = excluded.renewed_at,
    lease_until = excluded.lease_until, renewed_mono = excluded.renewed_mono;

-- name: leases
-- Every host's last sign of life.
SELECT host_id, pid_namespace, boot_id, renewed_at, lease_until, renewed_mono FROM hosts;

-- name: record_reconcile
-- The last reconciliation of each trigger.
INSERT INTO reconciles (trigger, at, wall_ms, verdicts, skipped)
VALUES (:trigger, :at, :wall_ms, :verdicts, :skipped)
ON CONFLICT (trigger) DO UPDATE SET
    at = excluded.at, wall_ms = excluded.wall_ms, verdicts = excluded.verdicts, skipped = excluded.skipped;

-- name: reconciles
-- The last reconciliation of each trigger.
SELECT trigger, at, wall_ms, verdicts, skipped FROM reconciles;

-- name: events
-- The log in order: of one run or of all, from a time and after a number.
SELECT seq, at, kind, run_id, task_id, data FROM events
WHERE seq > :after AND (:run_id IS NULL OR run_id = :run_id) AND (:since IS NULL OR at >= :since)
ORDER BY seq LIMIT :limit;

-- name: last_event
-- The number of the newest event; 0 in an empty log.
SELECT coalesce(max(seq), 0) AS seq FROM events;

-- name: restored_since
-- One row if the ledger was restored from a backup at this time or later.
SELECT seq FROM events
WHERE at >= :at AND run_id IS NULL AND task_id IS NULL AND kind = 'ledger.restored' LIMIT 1;

-- name: forget_run
-- Retention: a closed run leaves together with its events.
DELETE FROM runs WHERE fence = CAST(substr(:run_id, 2) AS INTEGER) AND run_id = :run_id AND state = 'closed';

-- name: forget_events_of_run
-- Retention: the fold of what remains is then still the present.
DELETE FROM events WHERE run_id = :run_id AND kind LIKE 'run.%';

-- name: forget_notes
-- Retention: events that change nothing and belong to no run. The newest stays, so that its number is not given again.
DELETE FROM events
WHERE at < :before AND seq <= :last_event AND run_id IS NULL AND task_id IS NULL AND kind NOT LIKE 'pause.%'
    AND kind NOT LIKE 'release.%' AND seq < (SELECT max(seq) FROM events);

-- name: raise_counter
-- After a restore: never hand out a fence or a task's number again.
UPDATE counters SET value = max(value, :value) WHERE name = :name;

-- name: counters
-- The newest fence and the newest task's number that were handed out.
SELECT name, value FROM counters;

-- name: sizes
-- How much there is, for a person who makes or brings back a backup.
SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM events) AS events;

-- name: seen_time
-- The last look at the clocks, and how much time was seen to pass until then.
SELECT boot_id, wall, boottime, seen, pending, steady_since, jumped_at, jumped_by FROM seen_time;

-- name: keep_seen_time
-- A further look.
INSERT INTO seen_time (id, boot_id, wall, boottime, seen, pending, steady_since, jumped_at, jumped_by)
VALUES (1, :boot_id, :wall, :boottime, :seen, :pending, :steady_since, :jumped_at, :jumped_by)
ON CONFLICT (id) DO UPDATE SET
    boot_id = excluded.boot_id, wall = excluded.wall, boottime = excluded.boottime, seen = excluded.seen,
    pending = excluded.pending, steady_since = excluded.steady_since, jumped_at = excluded.jumped_at,
    jumped_by = excluded.jumped_by;

-- name: keep_seen_mark
-- Which event is the newest now; one mark for each hour or so that was seen, and one for each boot.
INSERT INTO seen_marks (seen, wall, event)
SELECT :seen, :wall, coalesce((SELECT max(seq) FROM events), 0)
WHERE :seen >= coalesce((SELECT max(seen) FROM seen_marks) + :every, 0)
ON CONFLICT (seen) DO UPDATE SET wall = excluded.wall, event = excluded.event;

-- name: seen_mark
-- The newest mark that is so old by the time that was seen.
SELECT wall, event FROM seen_marks WHERE seen <= :seen ORDER BY seen DESC LIMIT 1;
