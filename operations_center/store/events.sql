-- name: append_event
-- The log grows with every change, in the change's own transaction.
INSERT INTO events (at, kind, run_id, task_id, data) VALUES (?, ?, ?, ?, ?);

-- name: next_number
-- Draw the next value of a counter; it never goes back, also not when a run is pruned.
UPDATE counters SET value = value + 1 WHERE name = :name RETURNING value;

-- name: what_it_is
-- How many tables there are, which schema, and whose file it is.
SELECT (SELECT count(*) FROM sqlite_master), user_version, application_id FROM pragma_user_version, pragma_application_id;

-- name: objects
-- Tables, indexes, triggers and views; without what ANALYZE leaves.
SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT GLOB 'sqlite_stat[0-9]';
