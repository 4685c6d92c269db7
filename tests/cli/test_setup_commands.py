"""init, config, unit, doctor."""

import glob
import os
import shlex
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from operations_center.config import load_config, merged, write_template
from tests.cli.command_line import CommandLine


def test_init_writes_a_configuration_that_a_check_finds_no_mistake_in(empty: CommandLine) -> None:
    written = empty("init", "new place", "--json").json["config_file"]
    assert written == str(empty.root / "new place" / "operations_center.toml")
    assert empty("config", "check", "--config", written, "--json").json["ok"] is True


def test_init_overwrites_nothing(line: CommandLine) -> None:
    assert "exists already" in line("init", expect=1).complaint


def test_config_show_prints_toml_that_means_the_same(line: CommandLine) -> None:
    shown = line("config", "show").out
    (line.root / "again.toml").write_text(shown)
    first, second = (load_config(line.root / name, {}) for name in ("operations_center.toml", "again.toml"))
    assert merged(first) == merged(second)
    assert tomllib.loads(shown)["backends"]["agent"]["argv"] == ["cat"]


def test_config_show_hides_nothing_that_is_null_in_json(line: CommandLine) -> None:
    shown = line("config", "show", "--json").json
    assert shown["web"] is None
    assert shown["backends"]["agent"]["timeout"] == "1h"


def test_a_mistake_in_the_configuration_is_exit_78_everywhere(line: CommandLine) -> None:
    with (line.root / "operations_center.toml").open("a") as file:
        file.write("\n[wep]\n")
    for words in (["config", "check"], ["config", "show"], ["task", "list"], ["unit"]):
        assert "wep" in line(*words, expect=78).complaint
    told = line("config", "check", "--json", expect=78).json
    assert (told["ok"], len(told["errors"])) == (False, 1)
    told = line("doctor", "--json", expect=78).json
    assert told["checks"][0]["status"] == "fault"


def test_inactive_sections_are_a_note(line: CommandLine) -> None:
    with (line.root / "operations_center.toml").open("a") as file:
        file.write('\n[web]\nlisten = "127.0.0.1:0"\n')
    checked = line("config", "check")
    assert "[web] is inactive" in checked.err
    assert any(check["name"] == "inactive" for check in line("doctor", "--json").json["checks"])


def test_the_unit_spares_executors_and_names_absolute_paths(line: CommandLine) -> None:
    unit = line("unit").out
    assert "\nKillMode=process\n" in unit
    (start,) = [entry for entry in unit.splitlines() if entry.startswith(("ExecStart=/", 'ExecStart="/'))]
    assert f'up --config "{line.root}/operations_center.toml"' in start


def test_the_unit_comes_back_after_any_end_but_a_stop_that_was_asked_for(line: CommandLine) -> None:
    unit = line("unit").out.splitlines()
    assert "Restart=always" in unit
    assert "RestartPreventExitStatus=0 75 78" in unit
    (reload,) = [entry for entry in unit if entry.startswith("ExecReload=")]
    assert " restart --config " in reload


NAMES_A_VARIABLE = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["true"]
env = ["AGENT_KEY"]
max_concurrent = 1
"""


def test_the_unit_has_a_file_for_the_variables_of_backends_and_the_doctor_reads_their_names(line: CommandLine) -> None:
    (line.root / "operations_center.toml").write_text(NAMES_A_VARIABLE)
    file = line.root / "operations_center.env"
    unit = line("unit").out
    assert f"\nEnvironmentFile=-{file}\n" in unit
    assert "AGENT_KEY" in unit
    assert "service" not in warnings_of_doctor(line)
    file.write_text("OTHER=1\nexport=2\n")
    file.chmod(0o600)
    assert f"AGENT_KEY; set it in {file}" in warnings_of_doctor(line)["service"]
    file.write_text("# none\n AGENT_KEY=secret-value\n")
    assert "service" not in warnings_of_doctor(line)
    file.chmod(0o644)
    assert "chmod 600" in warnings_of_doctor(line)["service"]
    assert "secret-value" not in line("doctor").out


ODD = ["a b", "100%", "$HOME", 'say "x"', "back\\slash", "it's", "semi;colon", "[a]*", "ünï"]


@pytest.mark.parametrize("name", ODD)
def test_the_unit_of_an_odd_directory_says_what_it_means(line: CommandLine, name: str) -> None:
    directory = line.root / name
    line("init", str(directory))
    config = directory / "operations_center.toml"
    unit = line("unit", "--config", str(config)).out
    lines = dict(entry.split("=", 1) for entry in unit.splitlines() if "=" in entry and not entry.startswith("#"))
    assert lines["WorkingDirectory"].replace("%%", "%") == str(directory)
    words = shlex.split(lines["ExecStart"].replace("%%", "%").replace("$$", "$"))
    assert words[-1] == str(config)
    # A backslash quotes for glob(3), and for Python's it does not.
    pattern = lines["EnvironmentFile"][1:].replace("%%", "%").replace("\\\\", "\\")
    assert glob.glob(pattern.removesuffix("/operations_center.env")) == [str(directory)]


@pytest.mark.parametrize(
    "name", ["a\nExecStartPre=-/bin/sh -c id\nX=b", "tab\tstop", "carriage\rreturn", "end\\", "end "]
)
def test_a_name_that_systemd_cannot_be_told_is_refused(line: CommandLine, name: str) -> None:
    directory = line.root / name
    line("init", str(directory))
    refused = line("unit", "--config", str(directory / "operations_center.toml"), expect=1)
    assert refused.out == ""
    assert refused.complaint.startswith("cannot print a unit: ")


def test_the_doctor_changes_nothing(line: CommandLine) -> None:
    told = line("doctor", "--json").json
    assert told["ok"] is True
    assert os.listdir(line.root) == ["operations_center.toml"]


def warnings_of_doctor(line: CommandLine) -> dict[str, str]:
    """A fleet could start all the same."""
    checks = line("doctor", "--json").json["checks"]
    return {check["name"]: check["detail"] for check in checks if check["status"] == "warning"}


def test_the_doctor_finds_what_keeps_runs_from_starting(line: CommandLine) -> None:
    config = line.root / "operations_center.toml"
    config.write_text(config.read_text().replace('["cat"]', '["no-such-program"]'))
    assert "no-such-program" in warnings_of_doctor(line)["backend agent"]


def test_the_doctor_warns_of_a_follow_up_that_no_role_takes(line: CommandLine) -> None:
    config = line.root / "operations_center.toml"
    after = 'on_success = { state = "done", follow_up = "tset" }\n'
    config.write_text(config.read_text().replace("[roles.goal]\n", f"[roles.goal]\n{after}"))
    line("config", "check")
    assert "tset" in warnings_of_doctor(line)["role goal"]


def test_a_variable_that_is_not_set_is_only_a_warning(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    config = line.root / "operations_center.toml"
    config.write_text(config.read_text().replace('argv = ["cat"]', 'argv = ["cat"]\nenv = ["NO_SUCH_KEY"]', 1))
    warnings = [check for check in line("doctor", "--json").json["checks"] if check["status"] == "warning"]
    assert any("NO_SUCH_KEY" in check["detail"] for check in warnings)
    monkeypatch.setenv("NO_SUCH_KEY", "1")
    assert "NO_SUCH_KEY" not in line("doctor").out


def test_a_providers_secret_that_is_not_there_is_only_a_warning(
    line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = line.root / "operations_center.toml"
    provider = '[backends.video]\nkind = "http_job"\npreset = "luma"\nsecret_env = "NO_SUCH_KEY"\nmax_concurrent = 1\n'
    config.write_text(f"{config.read_text()}\n{provider}")
    checks = {check["name"]: check for check in line("doctor", "--json").json["checks"]}
    assert checks["backend video"]["status"] == "warning"
    assert "NO_SUCH_KEY is not set" in checks["backend video"]["detail"]
    monkeypatch.setenv("NO_SUCH_KEY", "s3cret")
    checks = {check["name"]: check for check in line("doctor", "--json").json["checks"]}
    assert checks["backend video"]["status"] == "ok"
    assert "s3cret" not in str(checks)


def test_the_doctor_says_what_is_weaker_without_cgroups(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> dict[str, str]:
        (check,) = [check for check in line("doctor", "--json").json["checks"] if check["name"] == "cgroup"]
        return dict(check)

    monkeypatch.setattr("operations_center.care.doctor.usable_cgroup_parent", lambda: None)
    assert told()["status"] == "warning"
    assert "escapes its run" in told()["detail"]
    monkeypatch.setattr("operations_center.care.doctor.usable_cgroup_parent", lambda: Path("/a/cgroup"))
    assert (told()["status"], told()["detail"]) == ("ok", "each run gets its own below /a/cgroup")
    monkeypatch.setenv("OPERATIONS_CENTER_CENTER__CGROUP", "off")
    assert told()["status"] == "warning"
    assert 'set it to "auto"' in told()["detail"]


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_the_doctor_finds_a_damaged_ledger(line: CommandLine, content: bytes) -> None:
    line.state.create()
    line.state.ledger.write_bytes(content)
    told = line("doctor", "--json", expect=1).json
    assert [check["name"] for check in told["checks"] if check["status"] == "fault"] == ["ledger"]


def test_the_doctor_finds_a_ledger_that_was_lost(line: CommandLine) -> None:
    line.state.create()
    (line.state.runs / "r1-abcdef").mkdir()
    assert "it is missing, but" in line("doctor", expect=1).out


def test_the_doctor_refuses_a_state_directory_that_is_a_file(line: CommandLine) -> None:
    Path(line.state.root).write_text("")
    assert "is not a directory" in line("doctor", expect=1).out


def test_the_doctor_opens_no_ledger_where_somebody_else_may_have_written(line: CommandLine) -> None:
    line.task()
    journal = line.state.root / "ledger.db-journal"
    os.mkfifo(journal)
    assert f"{journal} is something else" in line("doctor", expect=1).out
    journal.unlink()
    line.state.root.chmod(0o777)
    assert "its mode is 0777" in line("doctor", expect=1).out


@pytest.fixture
def work_tree(empty: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the command line is a clone, and somebody has a home elsewhere."""
    (empty.root / ".git").mkdir()
    home = empty.root.with_name("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return home


def test_init_in_a_work_tree_keeps_the_state_outside_of_it(empty: CommandLine, work_tree: Path) -> None:
    told = empty("init", "--json").json
    state = load_config(empty.root / "operations_center.toml", {}).center.state_dir
    assert told["state_dir"] == str(state)
    assert state.parent == work_tree / ".local/state/operations_center"
    assert state.name.startswith(f"{empty.root.name.replace(' ', '-')}-")
    assert "state_dir" not in warnings_of_doctor(empty)
    (empty.root / "operations_center.toml").unlink()
    assert f"outside of the git work tree, in {state}" in empty("init").out


def test_init_in_a_home_that_is_a_work_tree_keeps_the_state_beside_the_file(
    empty: CommandLine, work_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(empty.root))
    assert empty("init", "--json").json["state_dir"] == str(empty.root / ".operations_center")


def test_the_doctor_recommends_a_place_outside_of_a_work_tree(empty: CommandLine, work_tree: Path) -> None:
    write_template(empty.root)
    warning = warnings_of_doctor(empty)["state_dir"]
    assert f"is in the git work tree {empty.root}, where `git clean -x` removes it" in warning
    assert warning.split()[-1].startswith(f"{work_tree}/.local/state/operations_center/")


def test_init_writes_a_file_that_is_obeyed_whatever_the_umask(empty: CommandLine) -> None:
    before = os.umask(0)
    try:
        assert empty("init").err == ""
    finally:
        os.umask(before)
    empty("config", "check")


def test_a_loop_of_follow_ups_and_a_variable_are_warned_of(line: CommandLine) -> None:
    config = line.root / "operations_center.toml"
    after = 'on_success = { state = "done", follow_up = "test" }\n'
    text = (
        config.read_text().replace('["cat"]', '["echo", "$HOME"]').replace("[roles.goal]\n", f"[roles.goal]\n{after}")
    )
    config.write_text(text.replace("[roles.test]\n", '[roles.test]\non_failure = { follow_up = "goal" }\n'))
    noted = line("config", "check").err
    assert "note: role goal: follow-ups in a loop: goal → test → goal" in noted
    assert "note: backend agent: argv[1] holds $HOME" in noted
    warnings = warnings_of_doctor(line)
    assert "again and again" in warnings["role goal"]
    assert "no shell reads argv" in warnings["backend agent"]


def test_the_doctor_tells_of_a_clock_that_was_set(line: CommandLine) -> None:
    with line.center() as center:
        center.ledger.observe_clocks()
    assert "was set by" not in line("doctor").out
    with closing(sqlite3.connect(line.state.ledger)) as connection:
        connection.execute("UPDATE seen_time SET wall = wall - 3600000")
        connection.commit()
    (told,) = [check for check in line("doctor", "--json").json["checks"] if "was set by" in check["detail"]]
    assert told["status"] == "warning"
    assert "set by +3600 s" in told["detail"]
