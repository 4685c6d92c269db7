-- name: insert_task
-- A new task; ``origin`` keys a follow-up, so that a replay makes none twice.
INSERT INTO tasks (
    task_id, number, title, kind, body, state, priority, backend, parent, depth, lineage, reason,
    claimed_by, origin, created_at, updated_at, urgency
) VALUES (
    :task_id, :number, :title, :kind, :body, :state, :priority, :backend, :parent, :depth, :lineage, :reason,
    :claimed_by, :origin, :created_at, :updated_at, :urgency
);

-- name: write_task
-- {columns} are those that change, inside the transaction that read them. A task that becomes ready may back off.
UPDATE tasks SET ({columns}) = ({values}),
    (waits_until, waits_since) = (SELECT not_before, since FROM attempts WHERE attempts.task_id = tasks.task_id)
WHERE task_id = ?;

-- name: finish_task
-- Tell how a run of the task has ended, as long as the task is that run's; it may be blocked until a person decides.
UPDATE tasks SET state = ?, reason = ?, claimed_by = NULL, updated_at = ?,
    (waits_until, waits_since) = (SELECT not_before, since FROM attempts WHERE attempts.task_id = tasks.task_id)
WHERE task_id = ? AND (state = 'running' OR state = 'blocked') AND claimed_by = ?;

-- name: task_row
-- One task as it is stored, without its texts, which may be large.
SELECT task_id, number, kind, state, priority, backend, parent, depth, lineage, reason, claimed_by, origin, created_at,
    updated_at
FROM tasks WHERE task_id = :task_id;

-- name: task_texts
-- What a task consists of.
SELECT title, body FROM tasks WHERE task_id = :task_id;

-- name: by_origin
-- The follow-up that a run has already left.
SELECT task_id FROM tasks WHERE origin = :origin;

-- name: task
-- One task with what the ledger remembers of its runs.
SELECT tasks.*, coalesce(attempts, 0) AS attempts, coalesce(retries, 0) AS retries, not_before, since,
    coalesce(interruptions, 0) AS interruptions
FROM tasks LEFT JOIN attempts USING (task_id)
WHERE task_id = :task_id;

-- name: tasks
-- All tasks, oldest first.
SELECT tasks.*, coalesce(attempts, 0) AS attempts, coalesce(retries, 0) AS retries, not_before, since,
    coalesce(interruptions, 0) AS interruptions
FROM tasks LEFT JOIN attempts USING (task_id)
WHERE :state IS NULL OR state = :state
ORDER BY number;

-- name: ready
-- What could be claimed, the most urgent first: a page after a place, of one kind and one backend. From the index alone.
SELECT task_id, kind, backend, urgency FROM tasks
WHERE state = 'ready' AND waits_until IS NULL AND kind = :kind AND backend IS :backend
    AND (urgency, number) > (:urgency, :number)
ORDER BY urgency, number LIMIT :limit;

-- name: ended_backoffs
-- Backoffs that are over, and those that began in the future: the clock was set back.
SELECT task_id FROM json_each(:kinds) CROSS JOIN tasks INDEXED BY waiting_tasks
WHERE state = 'ready' AND waits_until IS NOT NULL AND kind = value AND waits_until <= :now
UNION ALL
SELECT task_id FROM tasks INDEXED BY waiting_since
WHERE state = 'ready' AND waits_until IS NOT NULL AND waits_since > :now
LIMIT :limit;

-- name: end_backoffs
-- From here on these stand in the order.
UPDATE tasks SET waits_until = NULL, waits_since = NULL WHERE task_id IN (SELECT value FROM json_each(:task_ids));

-- name: next_ready_at
-- When the next of those that back off may be claimed.
SELECT min((
    SELECT waits_until FROM tasks
    WHERE state = 'ready' AND waits_until IS NOT NULL AND kind = value ORDER BY waits_until LIMIT 1
)) AS waits_until FROM json_each(:kinds);

-- name: waiting
-- The first of all that is ready, whether it backs off or not. Only of these more is read than the indexes hold.
SELECT task_id, title, listed.kind, listed.backend, listed.urgency FROM (
    SELECT task_id, kind, backend, urgency, number FROM tasks INDEXED BY startable_tasks
    WHERE state = 'ready' AND waits_until IS NULL
        AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)))
    UNION ALL
    SELECT task_id, kind, backend, urgency, number FROM tasks INDEXED BY waiting_tasks
    WHERE state = 'ready' AND waits_until IS NOT NULL
        AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)))
    ORDER BY urgency, number LIMIT :limit
) AS listed JOIN tasks USING (task_id)
ORDER BY listed.urgency, listed.number;

-- name: count_waiting
-- How many tasks are ready.
SELECT count(*) FROM tasks
WHERE state = 'ready' AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)));

-- name: states
-- Where some tasks stand.
SELECT task_id, state FROM tasks WHERE task_id IN (SELECT value FROM json_each(:task_ids));

-- name: running
-- Tasks that are shown as running.
SELECT task_id, claimed_by FROM tasks WHERE state = 'running' ORDER BY number;

-- name: counts
-- How many tasks there are in each state.
SELECT state, count(*) AS tasks FROM tasks GROUP BY state;

-- name: tasks_of_lineage
-- How many follow-ups descend from a task.
SELECT count(*) FROM tasks WHERE lineage = :lineage;
