"""The chaos soak: a real fleet under random kills, and an observer that compares the kernel with the ledger."""
