"""Where the variables of a process can be read, and that none is lost on the way to the next program."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from operations_center.environment import HAND_ON, HANDED_ON, TAKE_OVER, is_visible, kept_apart, value_of

ODD = "two\nlines, 'quotes' and \udcff"


def run(script: str, environment: dict[str, str], *descriptors: int) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, pass_fds=descriptors, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


SHOWN = """
import ctypes, json, os, sys
def shown():
    names = [entry.partition(b"=")[0].decode() for entry in open("/proc/self/environ", "rb").read().split(b"\\0")]
    return sorted(filter(None, names))
def of_the_c_library(name):
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    return libc.getenv(name)
"""


def test_cleared_block_shows_what_everybody_may_know_and_the_process_keeps_all() -> None:
    script = SHOWN + (
        "from operations_center.environment import clear_block\n"
        "before = shown(); clear_block(); clear_block(); child = os.fork()\n"
        "if child: os.waitpid(child, 0)\n"
        "else: print(json.dumps([before, shown(), os.environ['KEY'], of_the_c_library(b'KEY') == os.environb[b'KEY'],"
        " os.environ['HOME']]))\n"
        "sys.stdout.flush(); os._exit(0)"
    )
    environment = {"KEY": ODD, "HOME": "/h", "OPERATIONS_CENTER_RUN_ID": "r1-aaaaaa", "LC_ALL": "C.UTF-8", "EMPTY": ""}
    before, after, key, is_same, home = run(script, environment)
    assert {"KEY", "EMPTY"} <= set(before)
    assert after == ["HOME", "LC_ALL", "OPERATIONS_CENTER_RUN_ID"]
    assert (key, is_same, home) == (ODD, True, "/h")


@pytest.mark.parametrize("take_over", ["from operations_center.environment import take_over; take_over()", TAKE_OVER])
def test_what_is_kept_apart_is_taken_over(take_over: str) -> None:
    script = SHOWN + take_over + "\nprint(json.dumps([shown(), os.environ['KEY'], dict(os.environ)]))"
    with kept_apart({"KEY": ODD, "HOME": "/h"}) as (environment, descriptor):
        assert environment == {"HOME": "/h", HANDED_ON: str(descriptor)}
        shown, key, variables = run(script, environment, descriptor)
    assert key == ODD
    assert "KEY" not in shown
    assert HANDED_ON not in variables


def test_image_that_goes_back_hands_on_what_it_has_taken_over() -> None:
    back = SHOWN + TAKE_OVER + "\nprint(json.dumps([shown(), os.environ['KEY']]))"
    script = f"{TAKE_OVER}{HAND_ON}\nimport sys\nhand_on()\nos.execv(sys.executable, [sys.executable, '-c', {back!r}])"
    with kept_apart({"KEY": ODD, "HOME": "/h"}) as (environment, descriptor):
        shown, key = run(script, environment, descriptor)
    assert key == ODD
    assert "KEY" not in shown


def test_program_that_is_executed_without_anything_handed_on_starts() -> None:
    assert run(f"{TAKE_OVER}{HAND_ON}\nhand_on()\nprint(json.dumps(sorted(os.environ)))", {"A": "b"}) == [
        "A",
        "LC_CTYPE",
    ]


def test_variable_that_is_not_set_is_looked_for_among_the_credentials(tmp_path: Path) -> None:
    (tmp_path / "KEY").write_text("of systemd\n")
    (tmp_path / "LINK").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "LARGE").write_bytes(b"x" * 70_000)
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert value_of("KEY", credentials) == "of systemd"
    assert value_of("KEY", credentials | {"KEY": "set"}) == "set"
    assert value_of("KEY", {}) is None
    assert [value_of(name, credentials) for name in ("NONE", "LINK", "FIFO", "LARGE")] == [None] * 4


def test_names_of_secrets_are_not_visible() -> None:
    assert not any(map(is_visible, ("ANTHROPIC_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK")))
    assert all(map(is_visible, ("HOME", "LC_TIME", "LD_LIBRARY_PATH", "PYTHONPATH", "OPERATIONS_CENTER_STAGE_OF")))
