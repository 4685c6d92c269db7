"""What a section's structure says of its keys: which there are, of what type, and what to write."""

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from msgspec import Meta
from msgspec.structs import FieldInfo, fields

from operations_center.config.sections import Section


@cache
def keys_of(kind: type[Section]) -> dict[str, FieldInfo]:
    """The section's keys as the file spells them. ``name`` is not a key: the section's header gives it."""
    return {field.encode_name: field for field in fields(kind) if field.name != "name"}


def nested_section(field: FieldInfo) -> type[Section] | None:
    """The structure of a key whose value is a table itself."""
    return next((part for part in _parts(field.type) if isinstance(part, type) and issubclass(part, Section)), None)


def advice(field: FieldInfo) -> str:
    """What to write for a key, in words."""
    if nested := nested_section(field):
        return f"give a table such as {{ {next(iter(keys_of(nested)))} = … }}"
    return describe(field.type)


def describe(annotation: Any) -> str:
    """What to write for a value of this type, in words."""
    return next(part.description for part in _parts(annotation) if isinstance(part, Meta) and part.description)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _parts(part)
