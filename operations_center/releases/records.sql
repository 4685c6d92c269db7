-- name: all
-- Every release that is known, the one that changed last first.
SELECT "commit", state, reason, at, ledger_schema FROM releases ORDER BY number DESC;

-- name: find
-- One release by its commit.
SELECT "commit", state, reason, at, ledger_schema FROM releases WHERE "commit" = :commit;

-- name: record
-- What is known of a release now; its number becomes the highest.
REPLACE INTO releases ("commit", state, reason, at, ledger_schema) VALUES (:commit, :state, :reason, :at, :ledger_schema);

-- name: forget
-- A release whose directory goes.
DELETE FROM releases WHERE "commit" = :commit;
