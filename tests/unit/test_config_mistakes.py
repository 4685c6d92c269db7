"""Whatever a file holds, it loads or is refused with one line for each mistake."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.config import CommandSettings, HttpJobSettings, load_config, template_text
from operations_center.config.backends import BACKEND_KINDS
from operations_center.config.sections import SECTIONS, Section
from operations_center.config.structure import advice, keys_of, nested_section
from operations_center.errors import ConfigError

BACKEND = '[backends.agent]\nkind = "command"\nargv = ["cat"]\nmax_concurrent = 1\n'
ROLE = '[roles.goal]\nbackend = "agent"\n'
PROVIDER = """
[backends.video]
kind = "http_job"
secret_env = "VIDEO_API_KEY"
submit = { url = "https://api.example.org/jobs", headers = { Authorization = "Bearer {secret}" } }
job_id = "id"
poll = { url = "https://api.example.org/jobs/{job_id}", status = "status" }
status = { done = "succeeded" }
max_concurrent = 1
"""


@pytest.fixture
def mistakes(tmp_path: Path) -> Callable[..., list[str]]:
    path = tmp_path / "operations_center.toml"

    def find(content: str | bytes, **environ: str) -> list[str]:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError) as caught:
            load_config(path, environ)
        prefix = f"cannot use {path}: "
        assert all("\n" not in line for line in caught.value.lines)
        return [line.removeprefix(prefix) for line in caught.value.lines]

    return find


def test_all_mistakes_are_reported_at_once(mistakes: Callable[..., list[str]]) -> None:
    found = mistakes(
        """
        [roels.x]
        [center]
        state_dri = "x"
        keep = 30
        [board]
        kind = "plane"
        states = { ready = 3 }
        [roles.goal]
        backend = "agnt"
        on_success = { state = "running" }
        retry_backoff = { initial = "1", factor = nan }
        [roles."a b"]
        poll_interval = "0s"
        [roles.test]
        task_kinds = ["test", 3]
        backend = "agent"
        [backends.agent]
        argv = []
        env = ["OK", "1 b"]
        max_concurrent = 0
        timeout = 30
        [backends.video]
        kind = "http_job"
        anything = "goes"
        [backends.other]
        kind = "grpc"
        argv = ["cat"]
        max_concurrent = 1
        [web]
        listen = "a:99999"
        """
    )
    starts = [
        'roels: unknown section (did you mean "roles"?)',
        'center.state_dri: unknown key (did you mean "state_dir"?)',
        'center.keep: got 30 (give a duration such as "500ms"',
        'board.kind: plane is not available in this version; use "local"',
        "board.states.ready: got 3 (give a string",
        'roles.goal.backend: no backend is named "agnt" (did you mean "agent"?)',
        'roles.goal.on_success.state: got "running" (give one of done, review, backlog, blocked)',
        'roles.goal.retry_backoff.initial: "1" is not a duration (write',
        "roles.goal.retry_backoff.factor: got nan (give a number",
        'roles."a b": "a b" is not a name (give',
        'roles."a b".poll_interval: got "0s" (give a duration longer than 0',
        'roles."a b".backend: it is missing (give',
        "roles.test.task_kinds[1]: got 3 (give a list of kinds",
        'backends.agent.kind: it is missing (give "command" or "http_job")',
        "backends.agent.argv: got a list (give a program",
        'backends.agent.env[1]: got "1 b" (give',
        "backends.agent.max_concurrent: got 0 (give a whole number from 1",
        "backends.agent.timeout: got 30 (give a duration longer than 0",
        "backends.video.max_concurrent: it is missing (give a whole number",
        "backends.video.submit: it is missing (give a table such as { url = … })",
        "backends.video.poll: it is missing (give a table such as { url = … })",
        "backends.video.status: it is missing (give a table of the provider's words",
        "backends.video.anything: unknown key (known are",
        "backends.video.job_id: it is missing (say where the answer holds the id, or give own_id)",
        'backends.other.kind: grpc is not available in this version; use "command" or "http_job"',
        'web.listen: got "a:99999" (give "host:port"',
    ]
    assert [start for start in starts if not any(line.startswith(start) for line in found)] == []
    assert len(found) == len(starts)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 'roles: there is none (add one, such as [roles.goal] with backend = "NAME")'),
        (ROLE, 'roles.goal.backend: no backend is named "agent" (add [backends.agent])'),
        ("roles = 3", "roles: got 3 (write [roles.NAME] and its keys below)"),
        ("center = true\n" + ROLE + BACKEND, "center: got true (give a table with keys of its own)"),
        (
            ROLE + 'on_success = { state = "over" }\n' + BACKEND,
            'roles.goal.on_success.state: got "over" (give one of done, review, backlog, blocked)',
        ),
        (ROLE + "on_success = 1\n" + BACKEND, "roles.goal.on_success: got 1 (give a table with keys of its own)"),
        (
            ROLE + BACKEND + '[center]\nledger = "postgresql://me:secret@db/x"',
            'center.ledger: postgresql is not available in this version; use "sqlite"',
        ),
        (
            ROLE + BACKEND + '[roles.other]\nbackend = "agent"\ntask_kinds = ["goal"]',
            'roles.other.task_kinds: "goal" is taken by the role goal already (give each kind to one role)',
        ),
        (
            ROLE + BACKEND + '[board]\napi_key_env = "my secret"',
            "board.api_key_env: got a string (give the name of an environment variable)",
        ),
        (
            ROLE + BACKEND + "max_per_day = 0x" + "f" * 5000,
            "backends.agent.max_per_day: got a number beyond 64 bits (give a whole number from 0 to 1000000)",
        ),
        (
            ROLE + BACKEND + 'working_directory = "a\\u0000b"',
            'backends.agent.working_directory: got "a\\u0000b" (give a path, absolute or relative to this file)',
        ),
        (
            ROLE + BACKEND + '"grace\\n" = 1',
            'backends.agent."grace\\n": unknown key (did you mean "grace"?)',
        ),
    ],
)
def test_a_mistake_has_its_one_line(mistakes: Callable[..., list[str]], text: str, line: str) -> None:
    assert mistakes(text) == [line]


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("a = 1\nb = = 2\n", "line 2: it is not TOML: "),
        ("a = 1\nb = [", "line 2: it is not TOML: "),
        (b"a = 1\nb = '\xff'", "line 2: it is not UTF-8 "),
        (b"\xef\xbb\xbfa = 1", "line 1: it starts with a byte order mark "),
        (b"a = \0", "line 1: it is not TOML: "),
        ("a = " + "9" * 5000, "line 1: it is not TOML: "),
        ("a = " + "[" * 50_000, "it is nested too deeply "),
        ("\na" + ".b" * 50_000 + " = 1", "line 2: it has a key of more than 64 parts "),
        ("x = {" + '"a" . ' * 50_000 + "b = 1}", "line 1: it has a key of more than 64 parts "),
        ("#" * 2_000_000, "it is larger than 1 MiB "),
    ],
)
def test_a_file_that_is_not_toml_is_one_line(
    mistakes: Callable[..., list[str]], content: str | bytes, start: str
) -> None:
    (line,) = mistakes(content)
    assert line.startswith(start)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo", Path("/dev/zero"), Path("nul\0")):
        with pytest.raises(ConfigError, match=r"^cannot use .*: .* \(.+\)$"):
            load_config(path, {})


def test_an_override_that_fits_nothing_is_named_with_the_nearest(mistakes: Callable[..., list[str]]) -> None:
    assert mistakes(ROLE + BACKEND, OPERATIONS_CENTER_BACKENDS__AGENT__MAX_CONCURENT="3") == [
        "cannot use the environment variable OPERATIONS_CENTER_BACKENDS__AGENT__MAX_CONCURENT: there is no such"
        ' key (did you mean "OPERATIONS_CENTER_BACKENDS__AGENT__MAX_CONCURRENT"?)'
    ]


def test_a_bad_value_from_a_variable_names_the_variable(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(ROLE + BACKEND, OPERATIONS_CENTER_ROLES__GOAL__ON_SUCCESS='{ state = "x" }')
    assert line.startswith(
        'roles.goal.on_success.state (set by $OPERATIONS_CENTER_ROLES__GOAL__ON_SUCCESS): got "x" (give one of'
    )


def test_a_variable_that_stands_for_two_keys_is_refused(mistakes: Callable[..., list[str]]) -> None:
    text = ROLE + BACKEND + '[roles.a-b]\nbackend = "agent"\n[roles.a_b]\nbackend = "agent"\n'
    (line,) = mistakes(text, OPERATIONS_CENTER_ROLES__A_B__CONCURRENCY="2")
    assert "it stands for roles.a-b.concurrency and roles.a_b.concurrency" in line


def test_a_variable_that_is_not_utf8_is_refused(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(ROLE + BACKEND, OPERATIONS_CENTER_CENTER__STATE_DIR="\udcff")
    assert "not UTF-8" in line


def test_an_override_cannot_reach_into_what_is_no_table(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes("center = 3\n" + ROLE + BACKEND, OPERATIONS_CENTER_CENTER__KEEP="7d")
    assert line.startswith("center: got 3 ")


@pytest.mark.parametrize("section", [*SECTIONS.values(), *BACKEND_KINDS.values()])
def test_every_key_says_what_to_write(section: type[Section]) -> None:
    for field in keys_of(section).values():
        assert advice(field).startswith("give ")
        if nested := nested_section(field):
            assert all(advice(inner) for inner in keys_of(nested).values())


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    program = (
        "import sys, operations_center.config;"
        "print(sorted({'pydantic', 'httpx', 'jmespath', 'difflib', 'asyncio', 'sqlite3', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


ODD_VALUES = [
    "0",
    "-1",
    "1",
    str(2**63),
    str(-(2**200)),
    "0x" + "f" * 4000,
    "1e400",
    "nan",
    "-inf",
    "1.5",
    "true",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    '""',
    '"\\u0000"',
    '"\\u2028"',
    '"1s"',
    '"99999999999999d"',
    '"{"',
    "[]",
    "[1, 'a', []]",
    "[[[]]]",
    "{}",
    '{ "" = 1 }',
    '{ state = "done", initial = "1s" }',
    "{ kind = 'command' }",
    "=",
    "'''",
]


def every_key() -> list[tuple[str, str]]:
    sections = {"roles": "roles.goal"} | {section: section for section in SECTIONS if section != "roles"}
    kinds = {sections[section]: kind for section, kind in SECTIONS.items() if section != "backends"}
    kinds |= {"backends.agent": CommandSettings, "backends.video": HttpJobSettings}
    found = []
    for header, kind in kinds.items():
        for key, field in keys_of(kind).items():
            found.append((header, key))
            if nested := nested_section(field):
                found += [(header, f"{key}.{inner}") for inner in keys_of(nested)]
    return found


def mutate(chance: random.Random) -> bytes:
    lines = template_text().splitlines()
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[chance.randrange(len(lines))])
            case 2:
                key, equals, _value = lines[at].partition(" = ")
                lines[at] = f"{key}{equals}{chance.choice(ODD_VALUES)}"
            case 3:
                lines[at] = lines[at].removeprefix("# ")
            case 4:
                header, key = chance.choice(every_key())
                lines += [f"[{header}]", f"{key} = {chance.choice(ODD_VALUES)}"]
    text = "\n".join(lines).encode()
    if chance.random() < 0.2:
        at = chance.randrange(len(text))
        text = text[:at] + chance.randbytes(2) + text[at:]
    return text


def loads_or_is_refused(path: Path, content: bytes, environ: dict[str, str]) -> None:
    path.write_bytes(content)
    try:
        load_config(path, environ)
    except ConfigError as error:
        assert error.lines
        for line in error.lines:
            assert line.startswith("cannot use ")
            assert len(line.splitlines()) == 1
            line.encode()


@pytest.mark.parametrize("seed", range(200))
def test_rubbish_loads_or_is_refused(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "operations_center.toml"
    loads_or_is_refused(path, chance.randbytes(chance.randint(0, 400)), {})
    loads_or_is_refused(path, mutate(chance), {})


@pytest.mark.parametrize(("header", "key"), every_key())
def test_no_value_of_a_key_is_more_than_a_mistake(tmp_path: Path, header: str, key: str) -> None:
    path = tmp_path / "operations_center.toml"
    variable = f"OPERATIONS_CENTER_{header}.{key}".replace(".", "__").upper()
    for value in ODD_VALUES:
        required = {
            "roles.goal": 'backend = "agent"',
            "backends.agent": 'kind = "command"',
            "backends.video": 'kind = "http_job"',
        }
        rest = f"[{header}]\n{key} = {value}\n{required.get(header, '')}\n"
        loads_or_is_refused(path, rest.encode(), {})
        loads_or_is_refused(path, (ROLE + BACKEND + PROVIDER).encode(), {variable: value})
