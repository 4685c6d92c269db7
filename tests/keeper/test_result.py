"""An executor's result: what is understood, and that nothing in it can surprise us."""

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operations_center.keeper.result import RESULT_LIMIT, Result, ResultFollowUp, UnreadableResult, read_result


def read(directory: Path, content: bytes) -> object:
    (directory / "result.json").write_bytes(content)
    return read_result(directory)


def test_no_result_is_none(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None


def test_a_whole_result_is_read(tmp_path: Path) -> None:
    document = {
        "outcome": "retry",
        "summary": "später",
        "retry_after": "10m",
        "follow_ups": [{"title": "Test it", "kind": "test", "body": "b"}, {"title": "More"}],
        "artifacts": ["a.txt", "b/c.txt"],
        "of a later version": {"x": [1, 2.5, None]},
    }
    assert read(tmp_path, json.dumps(document).encode()) == Result(
        outcome="retry",
        summary="später",
        retry_after_ms=600_000,
        follow_ups=(ResultFollowUp("Test it", "test", "b"), ResultFollowUp("More")),
        artifacts=("a.txt", "b/c.txt"),
    )


@pytest.mark.parametrize("content", [b"{}", b'{"outcome": null, "retry_after": null}'])
def test_a_result_may_leave_the_outcome_to_the_exit_code(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == Result(None, "", None, (), ())


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("0s", 0), ("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("7d", 604_800_000)],
)
def test_retry_after_is_a_duration(tmp_path: Path, text: str, milliseconds: int) -> None:
    result = read(tmp_path, json.dumps({"retry_after": text}).encode())
    assert isinstance(result, Result)
    assert result.retry_after_ms == milliseconds


RUBBISH = {
    "empty": b"",
    "blank": b"  \n",
    "not json": b"hello",
    "torn": b'{"outcome": "succeeded", "summ',
    "a list": b"[]",
    "a string": b'"succeeded"',
    "null": b"null",
    "two documents": b"{} {}",
    "unknown outcome": b'{"outcome": "great"}',
    "outcome of a wrong type": b'{"outcome": 1}',
    "not a number": b'{"summary": NaN}',
    "not a number in an unknown key": b'{"x": NaN}',
    "infinity": b'{"x": Infinity}',
    "huge number": b'{"summary": ' + b"9" * 10_000 + b"}",
    "brackets": b"[" * 100_000,
    "brackets in an unknown key": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "braces": b'{"x":' * 100_000,
    "lone surrogate": b'{"summary": "\\ud800"}',
    "lone surrogate in a follow-up": b'{"follow_ups": [{"title": "\\udfff"}]}',
    "not utf-8": b'{"summary": "\xff\xfe"}',
    "not utf-8 in an unknown key": b'{"x": "\xff\xfe"}',
    "utf-16": '{"outcome": "succeeded"}'.encode("utf-16"),
    "NUL": b'{"summary": "a\\u0000b"}',
    "zeros": b"\0" * 100,
    "too large": b'{"summary": "' + b"x" * RESULT_LIMIT + b'"}',
    "a negative duration": b'{"retry_after": "-1s"}',
    "a duration without a unit": b'{"retry_after": "10"}',
    "a duration that is a number": b'{"retry_after": 10}',
    "a duration of ages": b'{"retry_after": "999999999999d"}',
    "a very long duration": b'{"retry_after": "' + b"9" * 5000 + b's"}',
    "a duration in other digits": '{"retry_after": "١٠m"}'.encode(),
    "a follow-up without a title": b'{"follow_ups": [{"body": "x"}]}',
    "a follow-up with an empty title": b'{"follow_ups": [{"title": ""}]}',
    "a follow-up that is a string": b'{"follow_ups": ["x"]}',
    "artifacts that are numbers": b'{"artifacts": [1]}',
    "artifacts that are an object": b'{"artifacts": {}}',
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_unreadable_with_a_reason_of_one_line(tmp_path: Path, name: str) -> None:
    result = read(tmp_path, RUBBISH[name])
    assert isinstance(result, UnreadableResult)
    assert result.reason.startswith("cannot read result.json: ")
    assert "\n" not in result.reason
    assert 30 < len(result.reason) < 400


def test_a_result_that_is_no_regular_file_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    os.mkfifo(path)
    assert isinstance(read_result(tmp_path), UnreadableResult)
    path.unlink()
    path.mkdir()
    assert isinstance(read_result(tmp_path), UnreadableResult)
    path.rmdir()
    path.symlink_to("/etc/passwd")
    assert isinstance(read_result(tmp_path), UnreadableResult)
    path.unlink()
    path.symlink_to("nowhere")
    assert isinstance(read_result(tmp_path), UnreadableResult)


def test_mutilated_results_never_raise(tmp_path: Path) -> None:
    chance = random.Random(20)
    whole = json.dumps({"outcome": "succeeded", "summary": "ok", "follow_ups": [{"title": "t"}]}).encode()
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        result = read(tmp_path, bytes(data[: chance.randint(0, len(data))]))
        assert isinstance(result, Result | UnreadableResult)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KEYS = ("outcome", "summary", "retry_after", "follow_ups", "artifacts")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary() | st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda d: json.dumps(d).encode()))
def test_no_content_whatever_raises(tmp_path: Path, content: bytes) -> None:
    assert isinstance(read(tmp_path, content), Result | UnreadableResult)
