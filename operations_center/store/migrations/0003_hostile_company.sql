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
