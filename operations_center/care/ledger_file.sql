-- name: counters
-- The newest fence and the newest task's number that were handed out.
SELECT name, value FROM counters;

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
