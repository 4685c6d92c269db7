-- Runs whose executor is a job at a provider. The columns stand at the end, in the order of the fields of ``Run``.
-- No kind is a command: what the log says of older runs stays true.
ALTER TABLE runs ADD COLUMN kind TEXT CHECK (kind = 'http_job');
ALTER TABLE runs ADD COLUMN submitting_at INTEGER;
ALTER TABLE runs ADD COLUMN submitting_mono INTEGER;
ALTER TABLE runs ADD COLUMN doubt TEXT;

-- What was last heard of the jobs of open runs. Not in the log: it is a memory of answers, and the provider has the facts.
CREATE TABLE jobs (
    run_id TEXT PRIMARY KEY,
    -- Where the provider wants to be asked: URLs by name. They may hold tokens, so they are shown nowhere.
    urls TEXT NOT NULL,
    word TEXT,
    progress REAL,
    heard_at INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    trouble TEXT,
    ask_at INTEGER
) STRICT;

-- Whether a provider takes anything now: its own pause after too many requests, and ours after too many failures.
CREATE TABLE backend_health (
    backend TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    since INTEGER NOT NULL,
    cooldown_until INTEGER,
    broken_until INTEGER
) STRICT;

-- Which schema of this ledger a release's code works with; none where it has no code of its own, or was never asked.
ALTER TABLE releases ADD COLUMN ledger_schema INTEGER;
