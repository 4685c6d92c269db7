-- name: read
-- The one row.
SELECT deployment FROM deployment;

-- name: write
-- As it is from now on.
INSERT INTO deployment (id, deployment) VALUES (1, :deployment)
ON CONFLICT (id) DO UPDATE SET deployment = excluded.deployment;
