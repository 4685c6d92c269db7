"""What a configuration means, and where it is found."""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations_center.config import (
    CommandSettings,
    Config,
    Role,
    find_config,
    format_duration,
    format_size,
    hints,
    load_config,
    merged,
    parse_duration,
    parse_size,
    template_text,
    warning_of_named,
    write_template,
)
from operations_center.config.sections import RetryBackoff
from operations_center.errors import ConfigError, OperationsCenterError
from operations_center.model import TaskState

MINIMAL = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["cat"]
max_concurrent = 1
"""

EVERYTHING = """
[center]
state_dir = ".operations_center"
ledger = "sqlite"
keep = "30d"

[board]
kind = "local"

[roles.goal]
task_kinds = ["goal"]
backend = "agent"
poll_interval = "30s"
concurrency = 2
on_success = { state = "done", follow_up = "test" }
on_failure = { state = "blocked" }
max_attempts = 3
retry_backoff = { initial = "1s", factor = 2, max = "5m" }

[roles.test]
backend = "agent"

[backends.agent]
kind = "command"
argv = ["claude", "-p", "{title}", "{release}"]
stdin = "prompt"
working_directory = "."
max_concurrent = 2
max_per_hour = 20
max_per_day = 100
min_available_memory = "2GiB"
timeout = "1h"
idle_timeout = "15m"
grace = "45s"
env = ["ANTHROPIC_API_KEY"]

[watchdog]
every = "30s"

[code_pull]
repository = "."
remote = "origin"
branch = "main"
every = "60s"
install = []
python = ""
preflight = []
canary = "10s"
keep = 5

[web]
listen = "127.0.0.1:8765"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "operations_center.toml"
    path.write_text(MINIMAL)
    return path


def load(path: Path, text: str, **environ: str) -> Config:
    path.write_text(text)
    return load_config(path, environ)


def agent_of(config: Config) -> CommandSettings:
    agent = config.backends["agent"]
    assert isinstance(agent, CommandSettings)
    return agent


def test_every_key_of_the_documentation_is_read(file: Path) -> None:
    config = load(file, EVERYTHING)
    goal, agent = config.roles["goal"], agent_of(config)
    assert config.file == file
    assert config.directory == file.parent
    assert config.center.state_dir == file.parent / ".operations_center"
    assert config.center.keep_ms == 30 * 86_400_000
    assert (goal.name, goal.backend, goal.concurrency, goal.poll_interval_ms) == ("goal", "agent", 2, 30_000)
    assert (goal.on_success.state, goal.on_success.follow_up) == (TaskState.DONE, "test")
    assert (agent.name, agent.argv) == ("agent", ("claude", "-p", "{title}", "{release}"))
    assert (agent.max_per_hour, agent.max_per_day) == (20, 100)
    assert agent.min_available_memory_bytes == 2 << 30
    assert (agent.timeout_ms, agent.idle_timeout_ms, agent.grace_ms) == (3_600_000, 900_000, 45_000)
    assert agent.env == ("ANTHROPIC_API_KEY",)
    assert config.code_pull is not None
    assert config.code_pull.repository == file.parent
    assert config.web is not None
    assert config.inactive_sections == ("web",)


def test_what_is_not_written_has_a_default(file: Path) -> None:
    config = load_config(file, {})
    goal, agent = config.roles["goal"], agent_of(config)
    assert config.center.state_dir == file.parent / ".operations_center"
    assert (config.center.ledger, config.center.cgroup, config.board.kind) == ("sqlite", "auto", "local")
    assert goal.task_kinds == ("goal",)
    assert (goal.concurrency, goal.max_attempts, goal.max_retries) == (1, 3, 20)
    assert (goal.on_success.state, goal.on_failure.state) == (TaskState.DONE, TaskState.BLOCKED)
    assert (agent.stdin, agent.working_directory, agent.timeout_ms) == ("prompt", None, None)
    assert (agent.grace_ms, agent.max_per_hour, agent.env) == (10_000, None, ())
    assert config.watchdog.stalled_after_ms == 30_000
    assert config.watchdog.min_free_disk_bytes == 200 << 20
    assert config.inactive_sections == ()


def test_the_ending_of_a_failed_run_keeps_its_own_default_state(file: Path) -> None:
    config = load(file, MINIMAL.replace("[backends", 'on_failure = { follow_up = "goal" }\n[backends'))
    assert config.roles["goal"].on_failure.state is TaskState.BLOCKED
    assert config.roles["goal"].on_failure.follow_up == "goal"


def test_roles_stand_in_the_order_of_the_file_and_are_found_by_kind(file: Path) -> None:
    config = load(file, template_text())
    assert list(config.roles) == ["goal", "test", "improve", "spec-author"]
    assert config.role_for_kind("spec-author") is config.roles["spec-author"]
    assert config.role_for_kind("nobody's") is None


def test_relative_paths_count_from_the_file_and_a_tilde_is_the_home(file: Path) -> None:
    text = MINIMAL + 'working_directory = "work"\n[center]\nstate_dir = "~/state"\n'
    config = load(file, text, HOME="/home/somebody")
    assert agent_of(config).working_directory == file.parent / "work"
    assert config.center.state_dir == Path("/home/somebody/state")
    assert load(file, MINIMAL + '[center]\nstate_dir = "/var/x"').center.state_dir == Path("/var/x")


def test_a_file_given_by_a_relative_path_has_an_absolute_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert load_config(Path(file.name), {}).directory == file.parent


def test_the_template_loads_as_it_stands(tmp_path: Path) -> None:
    config = load_config(write_template(tmp_path / "new"), {})
    assert config.backends["agent"].max_concurrent == 2
    assert config.inactive_sections == ()


def test_the_template_loads_with_its_examples_too(file: Path) -> None:
    lines = template_text().splitlines()
    start = lines.index("[backends.agent]")
    agent = lines.index("# [backends.agent]")
    after = next(at for at in range(agent, len(lines)) if lines[at].startswith("[watchdog]"))
    examples = [line.removeprefix("# ") for line in lines[agent:after]]
    rest = [line.removeprefix("# ") if line.startswith("#") else line for line in lines[after:]]
    config = load(file, "\n".join([*lines[:start], *examples, *rest]))
    assert agent_of(config).argv[0] == "claude"
    assert config.inactive_sections == ("web",)


def test_the_template_overwrites_nothing(file: Path) -> None:
    with pytest.raises(OperationsCenterError, match=r"^cannot write .*: it exists already; "):
        write_template(file.parent)
    assert file.read_text() == MINIMAL


def test_a_template_that_cannot_be_written_is_one_line(file: Path) -> None:
    with pytest.raises(OperationsCenterError, match=r"^cannot write .+; give another directory$"):
        write_template(file / "below-a-file")


def test_the_merged_configuration_is_plain_and_hides_the_user_of_a_url(file: Path) -> None:
    text = EVERYTHING.replace('"origin"', '"https://me:secret@example.org/x.git"')
    shown = merged(load(file, text))
    assert json.loads(json.dumps(shown)) == shown
    assert shown["code_pull"]["remote"] == "https://***@example.org/x.git"
    assert shown["backends"]["agent"]["timeout"] == "1h"
    assert shown["backends"]["agent"]["min_available_memory"] == "2GiB"
    assert shown["roles"]["goal"]["on_success"] == {"state": "done", "follow_up": "test"}
    assert shown["center"]["state_dir"] == str(file.parent / ".operations_center")
    assert merged(load(file, MINIMAL))["web"] is None


def test_an_explicit_file_comes_first_then_the_variable_then_the_nearest_parent(file: Path) -> None:
    below = file.parent / "a" / "b"
    below.mkdir(parents=True)
    other = below / "other.toml"
    other.touch()
    environ = {"OPERATIONS_CENTER_CONFIG": str(file)}
    assert find_config(Path("other.toml"), environ, below) == other
    assert find_config(None, environ, Path("/")) == file
    assert find_config(None, {}, below) == file
    assert find_config(None, {"OPERATIONS_CENTER_CONFIG": ""}, below) == file


def test_the_users_configuration_directory_comes_last(tmp_path: Path) -> None:
    path = tmp_path / "xdg" / "operations_center" / "operations_center.toml"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_config(None, {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}, tmp_path) == path


def test_no_file_at_all_says_to_run_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot find operations_center\.toml .* run operations-center init$"):
        find_config(None, {}, tmp_path)


@pytest.mark.parametrize("name", ["missing.toml", "operations_center.toml/below", "nul\0"])
def test_a_named_file_that_is_missing_is_named(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^cannot find {file.parent}/{name[:3]}.* does not exist "):
        find_config(Path(name), {}, file.parent)
    with pytest.raises(ConfigError, match="OPERATIONS_CENTER_CONFIG"):
        find_config(None, {"OPERATIONS_CENTER_CONFIG": name}, file.parent)


def test_overrides_reach_every_depth_whatever_their_case(file: Path) -> None:
    config = load(
        file,
        template_text(),
        OPERATIONS_CENTER_BACKENDS__AGENT__MAX_CONCURRENT="3",
        OPERATIONS_CENTER_ROLES__SPEC_AUTHOR__TASK_KINDS='["spec", "author"]',
        OPERATIONS_CENTER_ROLES__GOAL__ON_SUCCESS__STATE="review",
        OPERATIONS_CENTER_CENTER__STATE_DIR="elsewhere",
        operations_center_center__keep="7d",
        OPERATIONS_CENTER_WEB__LISTEN="127.0.0.1:0",
    )
    assert config.backends["agent"].max_concurrent == 3
    assert config.roles["spec-author"].task_kinds == ("spec", "author")
    assert config.roles["goal"].on_success.state is TaskState.REVIEW
    assert config.center.state_dir == file.parent / "elsewhere"
    assert config.center.keep_ms == 7 * 86_400_000
    assert config.inactive_sections == ("web",)


def test_the_inner_of_two_overrides_wins(file: Path) -> None:
    config = load(
        file,
        MINIMAL,
        OPERATIONS_CENTER_ROLES__GOAL__RETRY_BACKOFF='{ initial = "2s", max = "4s" }',
        OPERATIONS_CENTER_ROLES__GOAL__RETRY_BACKOFF__MAX="9s",
    )
    backoff = config.roles["goal"].retry_backoff
    assert (backoff.initial_ms, backoff.max_ms) == (2_000, 9_000)


def test_a_value_that_is_more_than_one_toml_value_is_a_string(file: Path) -> None:
    config = load(file, MINIMAL + "[code_pull]", OPERATIONS_CENTER_CODE_PULL__BRANCH="1\nother = 2")
    assert config.code_pull is not None
    assert config.code_pull.branch == "1\nother = 2"


def test_the_variables_of_executors_are_no_overrides(file: Path) -> None:
    load(
        file,
        MINIMAL,
        OPERATIONS_CENTER_RUN_ID="r1",
        OPERATIONS_CENTER_TASK_FILE="/x",
        OPERATIONS_CENTER_CONFIG=os.devnull,
    )


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("7d", 604_800_000), ("0s", 0)],
)
def test_durations_are_read_as_milliseconds(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds
    assert format_duration(milliseconds) == text


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1.5h", "1 s", "1S", "٣s", "1s\n", "9" * 5000 + "s", "9999d"])
def test_what_is_no_duration_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is (not a|too long a) duration \(write "):
        parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1KiB", 1024), ("7B", 7)])
def test_sizes_are_read_as_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert format_size(size) == text


@pytest.mark.parametrize("text", ["", "2", "GiB", "2 GiB", "1.5GiB", "-1B", "9999999TiB"])
def test_what_is_no_size_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is (not a|too large a) size \(write "):
        parse_size(text)


@given(st.integers(min_value=0, max_value=3650 * 86_400_000))
def test_a_formatted_number_reads_as_itself(number: int) -> None:
    assert parse_duration(format_duration(number)) == number
    assert parse_size(format_size(number)) == number


def backing_off(initial_ms: int, factor: float, max_ms: int) -> Role:
    backoff = RetryBackoff(initial_ms=initial_ms, factor=factor, max_ms=max_ms)
    return Role(name="goal", backend="agent", retry_backoff=backoff)


def test_the_backoff_grows_up_to_its_maximum() -> None:
    role = backing_off(1_000, 2, 300_000)
    assert [role.backoff_ms(attempt) for attempt in (1, 2, 3, 10)] == [1_000, 2_000, 4_000, 300_000]
    assert role.backoff_ms(10**12) == 300_000
    assert backing_off(0, 2, 300_000).backoff_ms(10**12) == 0


@given(
    st.integers(0, 10**9),
    st.floats(1, 1_000),
    st.integers(0, 10**9),
    st.integers(0, 2**62),
)
def test_the_backoff_never_passes_its_maximum(initial: int, factor: float, most: int, attempt: int) -> None:
    role = backing_off(initial, factor, most)
    assert min(initial, most) <= role.backoff_ms(attempt + 1) <= most


def test_the_search_ends_at_home(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "project").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot find"):
        find_config(None, {"HOME": str(home)}, home / "project")
    own = home / "operations_center.toml"
    own.write_text(MINIMAL)
    assert find_config(None, {"HOME": str(home)}, home / "project") == own


def test_a_configuration_that_was_found_and_that_others_may_write_is_refused(file: Path) -> None:
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=f"^cannot use {file}: it may be written by others: its mode is 0666"):
        find_config(None, {}, file.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_configuration_of_another_user_is_refused_where_it_was_found_and_named_where_it_was_named(file: Path) -> None:
    os.chown(file, 65534, 65534)
    with pytest.raises(ConfigError, match=f"^cannot use {file}: it belongs to user "):
        find_config(None, {}, file.parent)
    assert find_config(file, {}, file.parent) == file
    warning = warning_of_named(file)
    assert warning is not None
    assert warning.startswith(f"warning: {file}: it belongs to user ")


def test_a_configuration_of_ours_needs_no_warning(file: Path) -> None:
    assert warning_of_named(file) is None
    assert warning_of_named(file.with_name("missing")) is None


def test_a_fifo_in_the_place_of_a_configuration_is_refused_and_not_waited_for(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="it is not a regular file"):
        load_config(file, {})


def with_argv(file: Path, *argv: str) -> Config:
    return load(file, MINIMAL.replace('["cat"]', json.dumps(list(argv))))


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("{prompt}", "nothing replaces {prompt} (a command reads the prompt on stdin, or in the file {prompt_file})"),
        ("{body}", "nothing replaces {body} (a command reads"),
        ("{task.id}", "nothing replaces {task.id} (known are {prompt_file}, {run_id}, {task_id}, {title}, {release};"),
        ("{PROMPT}", "nothing replaces {PROMPT} (known are"),
        ("--title={title}", "nothing replaces {title} inside of a word (give it a word of its own)"),
        ("--prompt={prompt}", "nothing replaces {prompt} inside of a word"),
    ],
)
def test_what_looks_like_a_placeholder_and_is_none_is_a_mistake(file: Path, word: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_argv(file, "echo", "exec", word)
    (line,) = caught.value.lines
    assert line.startswith(f"cannot use {file}: backends.agent.argv[2]: {problem}")


def test_a_program_is_no_placeholder(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"argv\[0\]: got a placeholder"):
        with_argv(file, "{title}")


@pytest.mark.parametrize(
    "word",
    [
        "{}",
        "{title}",
        "{run_id}",
        "{task_id}",
        "{prompt_file}",
        "{release}/x",
        "{{prompt}}",
        '{"a": 1}',
        "--x={y}",
        "{0}",
    ],
)
def test_braces_that_mean_something_or_nothing_are_no_mistake(file: Path, word: str) -> None:
    config = with_argv(file, "echo", word)
    assert (agent_of(config).argv[1], hints(config)) == (word, [])


def test_a_variable_that_no_shell_replaces_is_a_hint(file: Path) -> None:
    (hint,) = hints(with_argv(file, "echo", "$HOME"))
    assert hint.about == "backend agent"
    assert hint.text.startswith("argv[1] holds $HOME: no shell reads argv")
    assert hints(with_argv(file, "timeout", "5", "/bin/sh", "-c", "echo $HOME")) == []
    assert hints(with_argv(file, "awk", "{print $1}")) == []


def test_a_placeholder_in_a_script_is_a_hint(file: Path) -> None:
    (hint,) = hints(with_argv(file, "sh", "-c", "echo {title}"))
    assert "holds {title}: nothing replaces it inside of a word" in hint.text


def follow_ups(file: Path, **roles: tuple[str | None, str | None]) -> list[str]:
    """The loops that are named, by what follows a success and a failure of each role."""
    text = MINIMAL.replace('[roles.goal]\nbackend = "agent"\n', "")
    for name, (success, failure) in roles.items():
        text += f'[roles.{name}]\nbackend = "agent"\n'
        text += f'on_success = {{ follow_up = "{success}" }}\n' if success else ""
        text += f'on_failure = {{ follow_up = "{failure}" }}\n' if failure else ""
    return [re.findall(r"loop: (.*?);", hint.text)[0] for hint in hints(load(file, text))]


def test_every_loop_of_follow_ups_is_named_once(file: Path) -> None:
    assert follow_ups(file, goal=("test", None), test=(None, None)) == []
    assert follow_ups(file, goal=("nobody", None)) == []
    assert follow_ups(file, goal=("goal", None)) == ["goal → goal"]
    assert follow_ups(file, goal=("test", None), test=(None, "goal")) == ["goal → test → goal"]
    both = follow_ups(file, a=("b", "a"), b=("c", None), c=("a", "b"))
    assert both == ["a → b → c → a", "a → a", "b → c → b"]
