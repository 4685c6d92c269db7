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
