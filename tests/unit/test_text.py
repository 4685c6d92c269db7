"""Text from elsewhere is shown, not obeyed, and keeps no secret."""

import pytest

from operations_center.text import hide_secrets, know_secrets, on_one_line, printable, printable_with_colours

OBEYED = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b31m",
    "\x90q\x9c",
    "\r",
    "\b",
    "\x7f",
    "\x00",
    "\u202egnp.exe",
    "\u2066",
    "\u200b",
    "\u2028",
    "\u2029",
    "\u061c",
    "\ufeff",
    "\U000e0041",
    "\ud800",
]


@pytest.mark.parametrize("text", OBEYED)
def test_what_a_terminal_would_obey_is_shown(text: str) -> None:
    shown = printable(f"a{text}ä", keep="\n\t")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    shown.encode()


@pytest.mark.parametrize("text", ["", "plain", "ünïcödé 漢字 🎉 👩‍👩‍👧", "tilde ~ and \\x1b in words", "مرحبا"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert on_one_line(text) == text


def test_line_ends_and_tabs_stay_where_they_are_asked_for() -> None:
    assert printable("a\tb\n") == r"a\tb\n"
    assert printable("a\tb\n\x1b", keep="\n\t") == "a\tb\n\\x1b"
    assert on_one_line("one\ntwo") == r"one\ntwo"


def test_colours_pass_and_nothing_else_of_escape_sequences_does() -> None:
    text = "\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link \x1b[2J \x1b[38:5:1m\x1b"
    assert printable_with_colours(text) == (
        "\x1b[1;31mred\x1b[0m \\x1b]8;;http://x\\x07link \\x1b[2J \x1b[38:5:1m\\x1b"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass word@example.org/x.git", "https://***@example.org/x.git"),
        ("cannot read 'https://me:pa/ss@example.org/x'", "cannot read 'https://***@example.org/x'"),
        ("https://example.org/x?private_token=abc&page=2", "https://example.org/x?private_token=***&page=2"),
        (
            "https://example.org/x?page=2&X-Amz-Signature=abc#top",
            "https://example.org/x?page=2&X-Amz-Signature=***#top",
        ),
        ("ANTHROPIC_API_KEY=abc is no name", "ANTHROPIC_API_KEY=*** is no name"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("authorization: Basic YWxhZGRpbjpvcGVu", "authorization: Basic ***"),
        ("said Bearer abcdefgh", "said Bearer ***"),
    ],
)
def test_a_secret_is_hidden_by_its_place(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Authorization = Bearer {secret}",
        'backends.video.secret_env: "VIDEO KEY" is no name; expected a name',
        "https://example.org/users?author=me&page=2",
        "git@example.org:x.git",
        "max_attempts = 3",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert hide_secrets(text) == text


def test_a_known_secret_is_hidden_wherever_it_stands() -> None:
    know_secrets(["hunter2/secret", "hunter2/secret and more", "short"])
    assert hide_secrets("says hunter2/secret, hunter2/secret and more, hunter2%2Fsecret") == "says ***, ***, ***"
    assert hide_secrets("short") == "short"


@pytest.mark.parametrize(
    "text", ["://" * 100_000 + "@", "token" * 100_000 + "=", "?" * 300_000 + "=", "\x1b" * 300_000]
)
def test_a_text_made_to_burn_time_does_not(text: str) -> None:
    hide_secrets(text)
    printable_with_colours(text)
