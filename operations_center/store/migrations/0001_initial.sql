-- CHECKs compare instead of looking into a list: for IN with more than two words SQLite builds a table at each write,
-- which took a third of the time of a run's transitions.

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, value) VALUES ('fence', 0), ('task', 0);

-- A number is never given twice, also without AUTOINCREMENT, which costs a page more in every transaction: the newest
-- event is never forgotten.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    run_id TEXT,
    task_id TEXT,
    data TEXT NOT NULL
) STRICT;

CREATE INDEX events_of_run ON events (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX notes ON events (at) WHERE run_id IS NULL AND task_id IS NULL;

-- The columns stand in the order of the fields of ``Run``. A run is found by its fence, with which its id begins: every
-- index is one more page to write at each admission.
CREATE TABLE runs (
    run_id TEXT NOT NULL CHECK (run_id GLOB 'r' || fence || '-*'),
    task_id TEXT NOT NULL,
    role TEXT NOT NULL,
    backend TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    fence INTEGER PRIMARY KEY,
    holder INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state = 'reserved' OR state = 'running' OR state = 'settling' OR state = 'closed'),
    host_id TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    pid_namespace INTEGER NOT NULL,
    host TEXT NOT NULL,
    watcher_pid INTEGER NOT NULL,
    watcher_ticks INTEGER NOT NULL,
    reserved_at INTEGER NOT NULL,
    reserved_mono INTEGER NOT NULL,
    grace_ms INTEGER NOT NULL,
    keeper_pid INTEGER,
    keeper_ticks INTEGER,
    cgroup TEXT,
    provider_job_id TEXT,
    release TEXT,
    started_at INTEGER,
    deadline_at INTEGER,
    deadline_mono INTEGER,
    stop_outcome TEXT,
    stop_reason TEXT,
    stop_then TEXT,
    kill_mono INTEGER,
    signalled_at INTEGER,
    termed_at INTEGER,
    outcome TEXT,
    proof TEXT,
    exit_code INTEGER,
    reason TEXT,
    finish TEXT,
    settled_at INTEGER,
    settled_mono INTEGER,
    closed_at INTEGER,
    -- A settled run says how it ended, and a run that still holds its slot does not.
    CHECK ((state = 'reserved' OR state = 'running') = (outcome IS NULL)),
    CHECK ((state = 'closed') = (closed_at IS NOT NULL))
) STRICT;

-- A task never has two open runs.
CREATE UNIQUE INDEX one_open_run_per_task ON runs (task_id) WHERE state <> 'closed';
CREATE INDEX held_slots ON runs (backend) WHERE state <> 'closed' AND state <> 'settling';
CREATE INDEX runs_of_task ON runs (task_id, fence);
-- For budgets and for retention.
CREATE INDEX runs_by_age ON runs (reserved_at, backend);

CREATE TABLE forgotten_admissions (
    backend TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE TABLE attempts (
    task_id TEXT PRIMARY KEY,
    attempts INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    not_before INTEGER,
    -- When the backoff began: one that began in the future began before the clock was set back.
    since INTEGER
) STRICT;

CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    title TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL CHECK (
        state = 'backlog' OR state = 'ready' OR state = 'running' OR state = 'review' OR state = 'done'
        OR state = 'blocked' OR state = 'cancelled'
    ),
    priority TEXT NOT NULL CHECK (
        priority = 'urgent' OR priority = 'high' OR priority = 'normal' OR priority = 'low'
    ),
    backend TEXT,
    parent TEXT,
    reason TEXT,
    claimed_by TEXT,
    origin TEXT UNIQUE,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE INDEX tasks_by_state ON tasks (state, kind, number);

CREATE TABLE task_holds (
    task_id TEXT PRIMARY KEY,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT;

CREATE TABLE pauses (
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    reason TEXT NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (name, source)
) STRICT;

CREATE TABLE hosts (
    host_id TEXT NOT NULL,
    pid_namespace INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    name TEXT NOT NULL,
    renewed_at INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    PRIMARY KEY (host_id, pid_namespace)
) STRICT;

-- Which release and configuration the fleet runs: one row, see releases/deployment.py.
CREATE TABLE deployment (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    deployment TEXT NOT NULL
) STRICT;

CREATE TABLE reconciles (
    trigger TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    wall_ms REAL NOT NULL,
    verdicts TEXT NOT NULL,
    skipped TEXT
) STRICT;

-- The newest change has the highest number, whatever the clock says.
CREATE TABLE releases (
    number INTEGER PRIMARY KEY,
    "commit" TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state = 'staged' OR state = 'good' OR state = 'bad'),
    reason TEXT,
    at INTEGER NOT NULL
) STRICT;
