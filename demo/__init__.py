"""A fleet that does real work while its processes are killed; then the promises are checked. See ``story.py``."""
