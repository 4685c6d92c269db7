"""Operations Center: supervises watchers, and proves who is alive instead of guessing.

``docs/glossary.md`` defines the words used here; ``ARCHITECTURE.md`` draws the floors of the package.
"""

__version__ = "0.1.0"
