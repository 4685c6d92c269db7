"""What is hidden of a secret."""

from pathlib import Path
from urllib.parse import quote

import pytest

from operations_center.providers.secret import Secret


def test_a_secret_that_was_exchanged_while_a_request_was_under_way_is_hidden_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old/one\n")
    secret = Secret(None, file, {})
    assert secret.value() == "old/one"
    file.write_text("old/one-and-new\n")
    assert secret.hide("401: no such key old/one, old%2Fone") == "401: no such key ***, ***"
    assert secret.hide("old/one-and-new") == "***"
    file.unlink()
    assert secret.hide("old/one-and-new, old/one") == "***, ***"


def test_a_secret_in_a_file_that_others_may_write_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("theirs")
    file.chmod(0o666)
    secret = Secret(None, file, {})
    assert secret.value() is None
    assert secret.obstacle == f"{file} is not believed: it may be written by others: its mode is 0666"


@pytest.mark.parametrize(
    "shown",
    ["{}", "x{}y", "{quoted}", "{lower}", "{twice}", "s%33cret%2Fkey", "https://api/x?key={quoted}&y"],
)
def test_secret_is_found_however_it_is_escaped(shown: str) -> None:
    secret = Secret("KEY", None, {"KEY": "s3cret/key"})
    quoted = quote("s3cret/key", safe="")
    text = shown.format("s3cret/key", quoted=quoted, lower=quoted.lower(), twice=quote(quoted))
    assert secret.is_in(text)
    assert "cret" not in secret.hide(text)


def test_text_made_to_look_like_the_secret_takes_no_time() -> None:
    secret = Secret("KEY", None, {"KEY": "%25" * 20 + "x"})
    assert not secret.is_in("%25" * 100_000)


def test_secret_as_short_as_a_word_makes_no_id_suspicious() -> None:
    secret = Secret("KEY", None, {"KEY": "job"})
    assert not secret.is_in("job-1")
    assert secret.hide("job-1") == "***-1"
