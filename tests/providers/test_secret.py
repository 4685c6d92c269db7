"""What is hidden of a secret."""

from pathlib import Path

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
