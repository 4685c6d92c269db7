"""Care of the ledger and of the set-up: backup, restore, retention, and what is wrong here."""
