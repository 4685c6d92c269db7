"""Text that came from elsewhere, made fit for a terminal and for a message: harmless, and without secrets."""

import re
from collections.abc import Iterable

HIDDEN = "***"
"""Stands where a secret stood."""

_OBEYED = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # controls, among them the beginnings of escape sequences
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what changes the direction of writing
    "\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # separators of lines, and what cannot be seen
    "\U000e0000-\U000e007f"  # tags: a second alphabet that cannot be seen
    "\ud800-\udfff"  # lone surrogates, which no terminal can be given
    "]"
)
"""What a terminal would obey or would not show."""

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")

# Every repetition is bounded, so that a text made for it cannot burn time.
_USER = re.compile(r"(?s)(\A\s?[\w+.-]{1,20}://).*@|(://)[^\s'\"<>]{0,500}@")
_NAME = r"[\w.-]{0,40}(?:token|secret|passw|pwd|key|auth(?!or)|credential|signature|\bsig)[\w.-]{0,40}"
_PARAMETER = re.compile(rf"(?i)([?&;#]{_NAME}=)[^\s&;#'\"]+")
_ASSIGNMENT = re.compile(r"(?i)(\b\w{0,40}(?:token|secret|passw(?:or)?d|api[_-]?key|credential)\w{0,40}=)[^\s&;'\"]+")
_HEADER = re.compile(r"(?i)\b((?:x-[\w-]{0,40}(?:key|token|secret|auth)|private-token)['\"]?\s?:\s?)[^\s'\",;]+")
_SCHEME = re.compile(r"(?i)\b(bearer\s|authorization['\"]?\s?[:=]\s?['\"]?(?:\w{1,20}\s)?)[\w.~+/=-]{6,}+(?!\s?\{)")

_SECRET_NAME = re.compile(
    r"(?i).*(?:token|secret|password|passwd|pwd|key|auth|authorization|credentials?|signature|sig)"
)
_PASSWORD = re.compile(r"://[^\s/@:]{0,100}:([^\s@]{1,500})@")

SHORTEST_SECRET = 8
"""Anything shorter would be found in ordinary words."""

_known_secrets: set[str] = set()


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey or would not show (``\\x1b``); ``keep`` names line end or tab to keep."""
    if text.isascii() and text.isprintable():
        return text
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def printable_with_colours(text: str, keep: str = "") -> str:
    """Escape like ``printable``, but keep the sequences that change colour and weight (SGR)."""
    if "\x1b" not in text:
        return printable(text, keep)
    colours = [*_COLOUR.findall(text), ""]
    plain = (printable(part, keep) for part in _COLOUR.split(text))
    return "".join(part + colour for part, colour in zip(plain, colours, strict=True))


def without_colours(text: str) -> str:
    """Remove the sequences that ``printable_with_colours`` keeps."""
    return _COLOUR.sub("", text)


def on_one_line(text: str) -> str:
    """Escape what a terminal would obey, line ends and tabs as well: for cells, reasons and error lines."""
    return printable(text)


def know_secrets(values: Iterable[str]) -> None:
    """Have ``hide_secrets`` find these values wherever they stand, until this process ends."""
    from urllib.parse import quote  # noqa: PLC0415 - most commands know no secret

    for value in values:
        if len(value) >= SHORTEST_SECRET:
            _known_secrets.update((value, quote(value, safe="")))


def is_secret_name(name: str) -> bool:
    """Whether what is called so is a secret by its name, such as ``api_key``."""
    return len(name) <= 100 and _SECRET_NAME.fullmatch(name) is not None


def secrets_in(text: str) -> list[str]:
    """Return what ``hide_secrets`` would hide in a text that holds URLs: passwords, and parameters by their name."""
    return [*_PASSWORD.findall(text), *(found[0][len(found[1]) :] for found in _PARAMETER.finditer(text))]


def hide_secrets(text: str) -> str:
    """Replace what is secret by its value (see ``know_secrets``) or by its place.

    Places are user and password of a URL, parameters, assignments and headers whose name says so, and what follows
    ``Authorization`` or ``Bearer``.
    """
    # The longest first: one value may contain another. A copy, because threads may add values.
    for value in sorted(_known_secrets.copy(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    if "@" in text and "://" in text:
        text = _USER.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}@", text)
    if "=" in text:
        text = _ASSIGNMENT.sub(rf"\1{HIDDEN}", _PARAMETER.sub(rf"\1{HIDDEN}", text))
    return _SCHEME.sub(rf"\1{HIDDEN}", _HEADER.sub(rf"\1{HIDDEN}", text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
