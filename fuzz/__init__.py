"""Feed rubbish to everything that somebody else may write. See ``docs/security.md``."""
