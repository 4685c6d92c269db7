-- name: counters
-- The newest fence and the newest task's number that were handed out.
SELECT name, value FROM counters;

-- name: seen_time
-- The last look at the clocks.
SELECT boot_id, wall, boottime, seen, pending, steady_since, jumped_at, jumped_by FROM seen_time;

-- name: newest_fence
-- The newest fence that was handed out.
SELECT value FROM counters WHERE name = 'fence';

-- name: newest_event
-- When the last event was written; NULL in an empty log.
SELECT max(at) FROM events;

-- name: tables
-- The tables of a ledger, without those that SQLite keeps for itself.
SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*';

-- name: rows
-- How many rows a table has.
SELECT count(*) FROM {table};

-- name: state_of_each_run
-- Oldest first.
SELECT run_id, state FROM runs ORDER BY fence;

-- name: state_of_run
-- None for a run that this ledger does not know.
SELECT state FROM runs WHERE fence = :fence AND run_id = :run_id;

-- name: all_rows
-- Whatever stands in a table.
SELECT * FROM {table};

-- name: dangling
-- In words, what one row says of another that is not there, or that says otherwise.
SELECT 'has not the two counters that a ledger has' WHERE (SELECT count(*) FROM counters) <> 2
UNION ALL
SELECT 'has run ' || run_id || ' and has handed out no such fence' FROM runs
WHERE fence > (SELECT value FROM counters WHERE name = 'fence')
UNION ALL
SELECT 'has task ' || task_id || ' and has handed out no such number' FROM tasks
WHERE number > (SELECT value FROM counters WHERE name = 'task') OR task_id <> 't' || number
UNION ALL
SELECT 'has task ' || task_id || ' of a parent that it does not know' FROM tasks AS child
WHERE parent IS NOT NULL AND NOT EXISTS (SELECT * FROM tasks WHERE task_id = child.parent)
UNION ALL
SELECT 'knows a job of run ' || run_id || ', and not the run' FROM jobs
WHERE run_id NOT IN (SELECT run_id FROM runs)
LIMIT 1;

-- name: commits
-- Releases that it knows.
SELECT "commit" FROM releases;

-- name: deployment
-- Which release and configuration the fleet runs.
SELECT deployment FROM deployment;

-- name: ready_tasks
-- Tasks that a fleet would run.
SELECT count(*) FROM tasks WHERE state = 'ready' OR state = 'running';

-- name: keepers_of_open_runs
-- Runs that hold a slot, and whose keeper is known.
SELECT run_id, keeper_pid, keeper_ticks FROM runs
WHERE (state = 'reserved' OR state = 'running') AND keeper_pid IS NOT NULL AND keeper_ticks IS NOT NULL;
