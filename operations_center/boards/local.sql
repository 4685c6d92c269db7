-- name: insert_task
-- A new task; ``origin`` keys a follow-up, so that a replay makes none twice.
INSERT INTO tasks (
    task_id, number, title, kind, body, state, priority, backend, parent, depth, lineage, reason,
    claimed_by, origin, created_at, updated_at
) VALUES (
    :task_id, :number, :title, :kind, :body, :state, :priority, :backend, :parent, :depth, :lineage, :reason,
    :claimed_by, :origin, :created_at, :updated_at
);

-- name: write_task
-- The whole row anew, inside the transaction that read it.
UPDATE tasks SET
    title = :title, kind = :kind, body = :body, state = :state, priority = :priority, backend = :backend,
    reason = :reason, claimed_by = :claimed_by, updated_at = :updated_at
WHERE task_id = :task_id;

-- name: finish_task
-- Tell how a run of the task has ended, as long as the task is that run's; it may be blocked until a person decides.
UPDATE tasks SET state = ?, reason = ?, claimed_by = NULL, updated_at = ?
WHERE task_id = ? AND (state = 'running' OR state = 'blocked') AND claimed_by = ?;

-- name: task_row
-- One task as it is stored.
SELECT * FROM tasks WHERE task_id = :task_id;

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
-- What could be claimed, the most urgent first.
SELECT tasks.*, coalesce(attempts, 0) AS attempts, coalesce(retries, 0) AS retries, not_before, since,
    coalesce(interruptions, 0) AS interruptions
FROM tasks LEFT JOIN attempts USING (task_id)
WHERE state = 'ready' AND kind IN (SELECT value FROM json_each(:kinds))
ORDER BY instr('urgent high normal low', priority), number;

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
