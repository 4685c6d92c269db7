"""No message shows a secret: neither by its value nor where one stands by its place."""

import subprocess
import sys

import pytest

from operations_center.cli.output import paint, say
from operations_center.errors import NotFound, OperationsCenterError
from operations_center.text import hide_secrets
from tests.cli.command_line import CommandLine

PROVIDER = """
[backends.agent]
kind = "command"
argv = ["curl", "--token", "SECRET-option", "--api-key=SECRET-assigned", "-H", "X-Api-Key: SECRET-argument", "{prompt_file}"]
env = ["SOME_API_KEY", "LANG"]
max_concurrent = 1

[backends.video]
kind = "http_job"
base_url = "https://api.example.org"
secret_env = "VIDEO_KEY"
submit = { url = "{base_url}/jobs?api_key=SECRET-parameter", headers = { Authorization = "Bearer {secret}", X-Api-Key = "SECRET-header", Cookie = "SECRET-cookie", Accept = "application/json" }, json = { prompt = "{prompt}", accessToken = "SECRET-json", max_tokens = "many", inner = [{ password = "SECRET-inner" }] } }
job_id = "id"
poll = { url = "{base_url}/jobs/{job_id}", status = "status" }
status = { done = "succeeded" }
max_concurrent = 1

[roles.goal]
backend = "agent"

[code_pull]
repository = "clone"
remote = "https://user:SECRET-password@git.example.org/x.git?private_token=SECRET-query"
"""  # noqa: E501
LITERALS = ("option", "parameter", "header", "cookie", "json", "inner", "password", "query")
"""What is known by its value, too."""


@pytest.fixture
def configured(empty: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    (empty.root / "operations_center.toml").write_text(PROVIDER)
    monkeypatch.setenv("SOME_API_KEY", "SECRET-variable")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:SECRET-proxy@proxy.example.org:3128")
    return empty


@pytest.mark.parametrize("words", ["config show", "config show --json", "config check", "doctor", "doctor --json"])
def test_no_command_shows_a_literal_of_the_configuration(configured: CommandLine, words: str) -> None:
    answer = configured(*words.split(), expect=None)
    assert "SECRET" not in answer.out + answer.err


def test_what_is_no_secret_is_shown(configured: CommandLine) -> None:
    shown = configured("config", "show", "--json").json["backends"]
    assert shown["agent"]["argv"] == [
        *("curl", "--token", "***", "--api-key=***", "-H", "X-Api-Key: ***", "{prompt_file}"),
    ]
    assert shown["video"]["submit"]["url"] == "{base_url}/jobs?api_key=***"
    submit = shown["video"]["submit"]
    assert submit["headers"] == {
        "Authorization": "Bearer {secret}",
        "X-Api-Key": "***",
        "Cookie": "***",
        "Accept": "application/json",
    }
    assert submit["json"] == {
        "prompt": "{prompt}",
        "accessToken": "***",
        "max_tokens": "many",
        "inner": [{"password": "***"}],
    }


def test_a_secret_of_the_configuration_is_hidden_in_every_later_message(configured: CommandLine) -> None:
    configured("config", "check")
    for name in (*LITERALS, "variable", "proxy"):
        assert hide_secrets(f"it says SECRET-{name}.") == "it says ***.", name
    assert hide_secrets("C.UTF-8") == "C.UTF-8"


@pytest.mark.parametrize(
    "line",
    [
        'env = ["SOME_KEY=SECRET-env"]',
        'env = ["SECRET-env"]',
        'env = "SECRET-env"',
        'env = ["GOOD", "SECRET env"]',
        'secret_env = "SECRET-env"',
        'kind = "http_job"\nsubmit = { url = "https://a/", headers = { X-Key = "SECRET-header\\n" } }',
        'kind = "http_job"\nsubmit = { url = "https://a/", headers = "SECRET-header" }',
        'kind = "http_job"\nbase_url = "ftp://me:SECRET@a/"',
        'kind = "http_job"\nbase_url = "a/?token=SECRET"',
    ],
)
def test_a_mistake_is_not_answered_with_the_secret(empty: CommandLine, line: str) -> None:
    kind = "" if "kind" in line else 'kind = "command"\n'
    (empty.root / "operations_center.toml").write_text(
        f'[roles.goal]\nbackend = "agent"\n[backends.agent]\n{kind}argv = ["cat"]\nmax_concurrent = 1\n{line}\n'
    )
    for words in (["config", "check"], ["doctor"], ["status"], ["config", "check", "--json"]):
        answer = empty(*words, expect=78)
        assert "SECRET" not in answer.out + answer.err
        assert "agent" in answer.out + answer.err


@pytest.mark.parametrize("kind", [OperationsCenterError, NotFound])
def test_an_error_is_one_harmless_line_without_secrets(kind: type[OperationsCenterError]) -> None:
    assert str(kind("cannot x: 'https://me:SECRET@a/': \x1b[2J\nno")) == r"cannot x: 'https://***@a/': \x1b[2J\nno"


def test_what_is_said_has_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    say("see ", paint("https://me:SECRET@a/", bold=True), " or https://me:SECRET@b/")
    assert capsys.readouterr().out == "see https://***@a/ or https://***@b/\n"


LOGGING = """
import logging
from operations_center.logs import log_to
log_to(None)
logging.warning("git says: %s", "https://me:SECRET@a/\\n2026-01-01T00:00:00 forged \\x1b[2J")
try:
    raise ValueError("https://me:SECRET@a/ \\x1b]0;x\\x07")
except ValueError:
    logging.exception("cannot go on")
"""


def test_a_record_of_a_log_is_one_harmless_line_without_secrets() -> None:
    told = subprocess.run([sys.executable, "-P", "-c", LOGGING], capture_output=True, text=True, check=True)
    lines = told.stderr.splitlines()
    assert lines[0].endswith(r"WARNING git says: https://***@a/\n2026-01-01T00:00:00 forged \x1b[2J")
    assert lines[1].endswith("ERROR cannot go on")
    assert lines[2].startswith("Traceback")
    assert lines[-1] == r"ValueError: https://***@a/ \x1b]0;x\x07"
