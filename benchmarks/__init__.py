"""What the program's speed is, each figure measured beside its floor or its peer in the same run. See README.md."""
