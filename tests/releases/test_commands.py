"""``pull``, ``pull --check``, ``releases``, ``stage`` and ``doctor``, as their users run them."""

import signal

import pytest

from operations_center.clock import from_rfc3339
from tests.fleet import wait_until
from tests.releases.clones import Clones


def complaint(err: str) -> str:
    line = err.splitlines()[-1]
    assert line.startswith("cannot ")
    assert "defect" not in line
    return line


def test_check_says_what_a_pull_would_fetch_and_stages_nothing(clones: Clones) -> None:
    clones.push({"program": "two"})
    commit = clones.push({"program": "three"})
    assert clones.json("pull", "--check") == {
        "schema": 1,
        "commit": commit,
        "new_commits": 2,
        "state": None,
        "reason": None,
    }
    assert commit in clones.run("pull", "--check")[0]
    assert clones.known() == {}
    assert clones.on_disk() == set()


def test_a_pull_makes_a_release_which_is_listed(clones: Clones) -> None:
    commit = clones.push({"program": "two"})
    pulled = clones.json("pull")
    assert (pulled["commit"], pulled["state"], pulled["reason"], pulled["new"]) == (commit, "staged", None, True)
    (listed,) = clones.json("releases")["releases"]
    assert (listed["commit"], listed["state"], listed["reason"]) == (commit, "staged", None)
    assert from_rfc3339(listed["at"]) > 0
    assert commit in clones.run("releases")[0]
    assert f" commit={commit[:12]} state=staged\n" in clones.run("events")[0]
    assert clones.json("pull")["new"] is False


def test_a_bad_commit_is_named_with_its_reason(clones: Clones) -> None:
    clones.configure(preflight="[['sh', '-c', 'echo when we came by this morning, it is raining; exit 1']]")
    commit = clones.push({"program": "two"})
    for _ in range(2):
        assert "it is raining" in complaint(clones.run("pull", expect=1)[1])
    (listed,) = clones.json("releases")["releases"]
    assert (listed["commit"], listed["state"]) == (commit, "bad")
    assert "it is raining" in listed["reason"]
    assert "it is raining" in clones.run("events")[0]
    checked = clones.json("pull", "--check")
    assert (checked["state"], checked["reason"]) == ("bad", listed["reason"])
    assert "it is raining" in clones.run("pull", "--check")[0]
    clones.configure()
    assert clones.run("pull", "--again")[0].startswith(commit)


def test_the_fleets_own_command_does_the_same(clones: Clones) -> None:
    commit = clones.push({"program": "two"})
    assert clones.json("stage")["commit"] == commit
    assert clones.run("stage")[0].startswith(commit)


def test_a_bad_commit_is_no_failure_of_the_fleets_own_pull(clones: Clones) -> None:
    """Else it would look for the commit that mends it after longer and longer pauses."""
    clones.configure(preflight="[['false']]")
    for _ in range(2):
        assert "it is bad" in complaint(clones.run("stage")[1])
    clones.configure(branch="'none'")
    complaint(clones.run("stage", expect=1)[1])


def test_what_is_not_committed_is_said_to_be_left_out(clones: Clones) -> None:
    (clones.clone / "program").write_text("changed")
    assert "is not committed" in clones.run("pull")[1]
    clones.git(clones.clone, "checkout", "--quiet", "program")
    assert "committed" not in clones.run("pull")[1]


@pytest.mark.parametrize("words", [("pull",), ("pull", "--check"), ("stage",)])
def test_without_code_pull_there_is_one_line(clones: Clones, words: tuple[str, ...]) -> None:
    text = clones.config_file.read_text()
    clones.config_file.write_text(text[: text.index("[code_pull]")])
    assert "no [code_pull]" in complaint(clones.run(*words, expect=1)[1])
    assert clones.json("releases") == {"schema": 1, "releases": []}


def test_a_remote_that_is_not_there_is_temporary(clones: Clones) -> None:
    clones.remote.rename(clones.root / "moved away")
    assert "try again" in complaint(clones.run("pull", expect=75)[1])
    assert "try again" in complaint(clones.run("pull", "--check", expect=75)[1])
    (clones.root / "moved away").rename(clones.remote)
    clones.run("pull")


def test_two_pulls_at_once_make_one_release(clones: Clones) -> None:
    clones.configure(install="['sh', '-c', 'touch ../../begun; until [ -e ../../go ]; do sleep 0.01; done']")
    first = clones.command("pull")
    wait_until((clones.state / "begun").exists, "the first")
    said = complaint(clones.run("stage", expect=75)[1])
    assert f"process {first.pid} " in said
    second = clones.command("pull")
    (clones.state / "go").touch()
    for pull in (first, second):
        assert pull.communicate()[0]
        assert pull.returncode == 0
    assert len(clones.known()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pull_that_is_told_to_end_cleans_up(clones: Clones, number: signal.Signals) -> None:
    clones.configure(install="['sh', '-c', 'touch ../../begun; sleep 1000; :']")
    process = clones.command("pull")
    wait_until((clones.state / "begun").exists, "the step")
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 130
    assert clones.on_disk() == set()
    assert clones.known() == {}
    assert clones.is_left() == []


def test_doctor_looks_at_the_clone(clones: Clones) -> None:
    def said() -> dict[str, str]:
        checks = clones.json("doctor")["checks"]
        return {check["status"]: check["detail"] for check in checks if check["name"] == "code_pull"}

    assert set(said()) == {"ok"}
    clones.configure(remote="'upstream'")
    assert "set code_pull.remote" in said()["warning"]
    clones.configure(python="'.venv/bin/python'")
    assert "set code_pull.install" in said()["warning"]
    clones.configure(repository="'elsewhere'")
    assert "set code_pull.repository" in said()["warning"]
