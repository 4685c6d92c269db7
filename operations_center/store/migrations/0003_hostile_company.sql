-- Who led the executor's session while its keeper lived, and the limits with which the run was admitted: whoever looks
-- after it enforces them, whatever the configuration says by then. They stand in the order of the fields of ``Run``.
ALTER TABLE runs ADD COLUMN executor_pid INTEGER;
ALTER TABLE runs ADD COLUMN executor_ticks INTEGER;
ALTER TABLE runs ADD COLUMN idle_timeout_ms INTEGER;
ALTER TABLE runs ADD COLUMN max_output INTEGER;

-- How many follow-ups lead from a lineage's first task to this one, and which task was the first. NULL in a first task
-- and in those of before this migration: what the log says of them stays true.
ALTER TABLE tasks ADD COLUMN depth INTEGER;
ALTER TABLE tasks ADD COLUMN lineage TEXT;
CREATE INDEX tasks_of_lineage ON tasks (lineage) WHERE lineage IS NOT NULL;

-- How often a task's runs were ended by the machine, by us or by a stranger: nothing that speaks against the task.
-- NULL in what was remembered before this migration: what the log says of it stays true.
ALTER TABLE attempts ADD COLUMN interruptions INTEGER;

-- What ready tasks are ordered by: ``urgency_of`` in model.py. Derived, so it is not in the log.
ALTER TABLE tasks ADD COLUMN urgency INTEGER;
UPDATE tasks SET urgency = created_at + CASE priority
    WHEN 'urgent' THEN 0 WHEN 'high' THEN 86400000 WHEN 'normal' THEN 172800000 ELSE 259200000
END;

-- A task that backs off: a copy of what ``attempts`` says, made when the task becomes ready and cleared when the backoff
-- is over. So those that may start are an index, however many others wait. Derived, so it is not in the log.
ALTER TABLE tasks ADD COLUMN waits_until INTEGER;
ALTER TABLE tasks ADD COLUMN waits_since INTEGER;
UPDATE tasks SET (waits_until, waits_since) = (
    SELECT not_before, since FROM attempts WHERE attempts.task_id = tasks.task_id
) WHERE state = 'ready';

-- These hold all that a turn reads and compares. In the row of a task its body, which may be large, stands before that.
CREATE INDEX startable_tasks ON tasks (kind, backend, urgency, number, task_id, state, waits_until)
WHERE state = 'ready' AND waits_until IS NULL;
CREATE INDEX waiting_tasks ON tasks (kind, waits_until, waits_since, backend, urgency, number, task_id, state)
WHERE state = 'ready' AND waits_until IS NOT NULL;
CREATE INDEX waiting_since ON tasks (waits_since, task_id, state, waits_until)
WHERE state = 'ready' AND waits_until IS NOT NULL;

-- What the roles' watchers wait to start, so that admission leaves a slot to the more urgent task of another role.
-- ``at_once`` is how many runs the role may have; ``offered_at`` since when a free slot is left to it. Not in the log.
CREATE TABLE wishes (
    backend TEXT NOT NULL,
    role TEXT NOT NULL,
    task_id TEXT NOT NULL,
    urgency INTEGER NOT NULL,
    at_once INTEGER NOT NULL,
    offered_at INTEGER,
    PRIMARY KEY (backend, role, task_id)
) STRICT, WITHOUT ROWID;

-- Why a backend is left alone. A command has this, too: when its runs fail within seconds, one after the other.
ALTER TABLE backend_health ADD COLUMN reason TEXT;

-- Time that was seen to pass: one row, see ledger/seen_time.py. Not in the log: it is a memory of clocks.
CREATE TABLE seen_time (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    boot_id TEXT NOT NULL,
    wall INTEGER NOT NULL,
    boottime INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    pending INTEGER NOT NULL,
    steady_since INTEGER NOT NULL,
    jumped_at INTEGER,
    jumped_by INTEGER
) STRICT;

-- Which event was the newest when so much time had been seen: what is older than that can be said without a clock.
CREATE TABLE seen_marks (
    seen INTEGER PRIMARY KEY,
    wall INTEGER NOT NULL,
    event INTEGER NOT NULL
) STRICT;

-- The monotonic clock of the boot at a host's last renewal: another pid namespace of that boot goes by it.
ALTER TABLE hosts ADD COLUMN renewed_mono INTEGER;
