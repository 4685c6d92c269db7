-- How many follow-ups lead from a lineage's first task to this one, and which task was the first. NULL in a first task
-- and in those of before this migration: what the log says of them stays true.
ALTER TABLE tasks ADD COLUMN depth INTEGER;
ALTER TABLE tasks ADD COLUMN lineage TEXT;
CREATE INDEX tasks_of_lineage ON tasks (lineage) WHERE lineage IS NOT NULL;

-- How often a task's runs were ended by the machine, by us or by a stranger: nothing that speaks against the task.
-- NULL in what was remembered before this migration: what the log says of it stays true.
ALTER TABLE attempts ADD COLUMN interruptions INTEGER;
