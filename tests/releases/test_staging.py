"""A commit becomes a release, or is bad, or nothing has happened."""

import gc
import os
import signal
import sys
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import msgspec
import pytest

from operations_center import heart
from operations_center.errors import LockHeld, OperationsCenterError, Unavailable
from operations_center.model import Outcome, Proof
from operations_center.outcomes import Ending
from operations_center.releases import staging, steps
from operations_center.releases.config_copies import keep_copy
from operations_center.releases.deployment import Deployment, Version
from operations_center.releases.records import ReleaseState
from operations_center.releases.staging import BadRelease
from operations_center.state_directory import SUPERVISOR
from operations_center.store import SCHEMA
from operations_center.supervisor.pulling import Pulling
from operations_center.waiting import Waiting
from tests.fleet import kill_if_there, wait_until
from tests.points import Stepped, effects
from tests.releases.clones import Clones, open_run_of


def sh(script: str) -> str:
    """As TOML spells a command."""
    return f"['sh', '-c', '''{script}''']"


def test_the_head_of_the_branch_becomes_a_release(clones: Clones) -> None:
    (clones.clone / "program").write_text("changed, and not committed")
    clones.configure(install=sh("echo made >made && pwd >where"))
    commit = clones.push({"program": "two"})
    staged = clones.stage()
    assert (staged.release.commit, staged.is_new) == (commit, True)
    assert clones.known() == {commit: ("staged", None)}
    release = clones.release(commit)
    assert (release / "program").read_text() == "two"
    # What is installed may know where it is.
    assert (release / "where").read_text() == f"{release}\n"
    assert release.stat().st_mode & 0o777 == 0o700
    assert clones.on_disk() == {commit}


def test_the_log_tells_when_a_commit_was_fetched_and_what_came_of_it(clones: Clones) -> None:
    good = clones.stage().release.commit
    clones.configure(preflight="[['false']]")
    bad = clones.push({"program": "two"})
    for _ in range(2):
        with pytest.raises(BadRelease):
            clones.stage()
    with clones.center() as center:
        told = [(event.kind, event.data["release"]["commit"]) for event in center.ledger.events()]
    assert told == [
        ("release.fetched", good),
        ("release.staged", good),
        ("release.fetched", bad),
        ("release.bad", bad),
    ]


def test_a_commit_that_is_a_release_is_not_made_again(clones: Clones) -> None:
    clones.configure(install=sh("echo x >>../../installs"))
    first, second = clones.stage(), clones.stage()
    assert (second.release, second.is_new) == (first.release, False)
    assert (clones.state / "installs").read_text() == "x\n"


def test_a_release_whose_directory_was_removed_is_made_again(clones: Clones) -> None:
    commit = clones.stage().release.commit
    (clones.release(commit) / "program").unlink()
    clones.release(commit).rename(clones.root / "elsewhere")
    assert clones.stage().is_new
    assert (clones.release(commit) / "program").exists()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"install": sh("echo working; echo it will not do >&2; exit 3")}, "it will not do"),
        ({"install": sh("exit 3")}, "exit code 3"),
        ({"install": "['no-such-program']"}, "no-such-program"),
        ({"preflight": "[['true'], ['sh', '-c', 'echo not today; false']]"}, "not today"),
        ({"python": "'bin/python'"}, "bin/python"),
    ],
)
def test_a_commit_that_fails_is_bad_with_its_reason_and_is_not_tried_again(
    clones: Clones, keys: dict[str, str], reason: str
) -> None:
    clones.configure(**keys)
    commit = clones.push({"program": "two"})
    with pytest.raises(BadRelease) as refused:
        clones.stage()
    assert reason in str(refused.value)
    ((state, known),) = clones.known().values()
    assert state == "bad"
    assert known is not None
    assert reason in known
    assert clones.on_disk() == set()
    clones.configure(install=sh("touch ../../tried"))
    with pytest.raises(BadRelease, match=commit):
        clones.stage()
    assert not (clones.state / "tried").exists()
    assert clones.stage(again=True).release.state is ReleaseState.STAGED
    assert clones.known() == {commit: ("staged", None)}


def test_a_bad_commit_is_not_made_again_over_runs_that_work_with_it(clones: Clones) -> None:
    commit = clones.stage().release.commit
    with clones.center() as center:
        run = open_run_of(center, commit)
        center.releases.record(commit, ReleaseState.BAD, "its watcher hung")
    with pytest.raises(OperationsCenterError, match="are alive") as refused:
        clones.stage(again=True)
    assert not isinstance(refused.value, BadRelease)
    assert (clones.release(commit) / "program").exists()
    with clones.center() as center:
        assert center.settlement.end(run, Ending(Outcome.SUCCEEDED, Proof.EXIT_RECORDED, "done"), center.me)
    assert clones.stage(again=True).is_new


def test_a_mended_commit_follows_a_bad_one(clones: Clones) -> None:
    clones.configure(preflight="[['grep', '-q', 'good', 'program']]")
    bad = clones.push({"program": "broken"})
    with pytest.raises(BadRelease):
        clones.stage()
    mended = clones.push({"program": "good"})
    assert clones.stage().release.commit == mended
    assert {commit: state for commit, (state, _) in clones.known().items()} == {bad: "bad", mended: "staged"}


def test_the_configuration_that_a_commit_brings_is_checked_in_its_place(clones: Clones) -> None:
    """The file in force lies in the clone, in a directory of its own."""
    inside = clones.clone / "fleet" / "operations_center.toml"
    text = clones.config_file.read_text()
    clones.push({"fleet/operations_center.toml": text})
    clones.git(clones.clone, "pull", "--quiet")
    clones.config_file.unlink()
    clones.config_file.symlink_to(inside)
    assert clones.stage().is_new
    clones.push({"fleet/operations_center.toml": text + "chanel = 1\n"})
    with pytest.raises(BadRelease, match=r"config check.*code_pull\.chanel"):
        clones.stage()


def test_the_programs_of_a_commit_get_no_secrets_and_nothing_of_systemds(clones: Clones) -> None:
    clones.configure(install=sh("env >../../environment"))
    os.environ["NOTIFY_SOCKET"] = "/nowhere"
    try:
        commit = clones.stage().release.commit
    finally:
        del os.environ["NOTIFY_SOCKET"]
    lines = (clones.state / "environment").read_text().splitlines()
    names = {line.split("=")[0] for line in lines}
    assert "PATH" in names
    assert names & {"SECRET_KEY", "NOTIFY_SOCKET"} == set()
    assert f"OPERATIONS_CENTER_RELEASE_DIR={clones.release(commit)}" in lines


@pytest.mark.parametrize("code", [0, 1])
def test_what_a_commits_programs_leave_in_the_background_is_ended(clones: Clones, code: int) -> None:
    leaves = "setsid sh -c \"trap '' TERM; touch ../../begun; sleep 1000; :\" & until [ -e ../../begun ]; do :; done"
    clones.configure(install=sh(f"{leaves}; exit {code}"))
    with pytest.raises(BadRelease) if code else nullcontext():
        clones.stage()
    assert clones.is_left() == []


def test_a_commit_whose_preflight_never_ends_is_bad(clones: Clones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operations_center.releases.preflight.COMMAND_WITHIN_S", 0.5)
    clones.configure(preflight="[['sleep', '1000']]")
    with pytest.raises(BadRelease, match=r"not done within 0\.5 s"):
        clones.stage()
    assert clones.is_left() == []


def test_a_force_push_leaves_everything_as_it_was(clones: Clones) -> None:
    current = clones.push({"program": "two"})
    clones.stage()
    clones.deploy(current)
    clones.force_push({"program": "three"})
    before = clones.known()
    with pytest.raises(OperationsCenterError, match="diverged or was force-pushed"):
        clones.stage()
    assert clones.known() == before
    assert clones.on_disk() == {current}


def test_a_second_stage_is_told_who_is_at_work(clones: Clones) -> None:
    clones.configure(install=sh("touch ../../begun; until [ -e ../../go ]; do sleep 0.01; done"))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            clones.stage()
            code = 0
        finally:
            os._exit(code)
    wait_until((clones.state / "begun").exists, "the first")
    with pytest.raises(LockHeld, match=f"process {pid} ") as held:
        clones.stage()
    assert held.value.exit_code == 75
    (clones.state / "go").touch()
    assert os.waitpid(pid, 0)[1] == 0
    assert not clones.stage().is_new


def test_ctrl_c_leaves_nothing_behind(clones: Clones) -> None:
    clones.configure(install=sh("touch ../../begun; sleep 1000"))
    pid = os.fork()
    if pid == 0:
        try:
            # An interrupt that comes while Python destroys what this test's process has left is lost.
            gc.disable()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            clones.stage()
        finally:
            os._exit(0)
    wait_until((clones.state / "begun").exists, "the step")
    os.kill(pid, signal.SIGINT)
    os.waitpid(pid, 0)
    assert clones.on_disk() == set()
    assert clones.known() == {}
    assert clones.is_left() == []


def test_a_stage_that_is_killed_at_any_step_is_begun_anew_by_the_next(clones: Clones, tmp_path: Path) -> None:
    clones.configure(
        install=sh("setsid sleep 1000 & echo made >made"),
        preflight="[['grep', '-q', 'made', 'made']]",
        keep="1",
    )
    with clones.center():
        pass
    step, hits = 1, 0
    while True:
        commit = clones.push({"program": str(step)})
        killed = Stepped(clones.stage, step, signal.SIGKILL, effects)
        killed.wait()
        whole = {found for found, (state, _) in clones.known().items() if state == "staged"}
        for name in whole:
            assert (clones.release(name) / "made").read_text() == "made\n", killed.where
        clones.stage()
        assert clones.known() == {commit: ("staged", None)}, killed.where
        assert clones.on_disk() == {commit}, killed.where
        assert (clones.release(commit) / "made").read_text() == "made\n", killed.where
        wait_until(lambda: not clones.is_left(), f"nothing is left of a stage killed at {killed.where}")
        if killed.where is None:
            break
        hits += 1
        step += STRIDE
    print(f" [killed at {hits} steps]", end="")
    assert hits > 10


STRIDE = 5
"""Each step once in as many runs would be too long: neighbours differ little."""


@pytest.mark.parametrize("command", ["pull", "stage"])
def test_programs_of_a_release_read_no_secret_in_the_process_that_starts_them(clones: Clones, command: str) -> None:
    secret = clones.environment["SECRET_KEY"]
    look = f'grep -lsaF "{secret}" /proc/[0-9]*/environ >../../found; echo done >>../../found'
    clones.configure(install=sh(look))
    clones.run(*([command] if command == "pull" else ["stage", "--config-copy", str(clones.config_file)]))
    assert (clones.state / "found").read_text() == "done\n"


def test_the_interpreter_of_a_release_is_its_own(clones: Clones) -> None:
    """A virtual environment, made in the release by its ``install``."""
    packages = Path(msgspec.__file__).parents[1]
    clones.configure(
        python="'.venv/bin/python'",
        install=sh(
            f'"{sys.executable}" -m venv --without-pip .venv && '
            f'echo "{packages}" >"$(echo .venv/lib/python*/site-packages)/more.pth"'
        ),
    )
    commit = clones.push_own_code()
    assert clones.stage().release.commit == commit


def test_a_configuration_that_is_edited_meanwhile_is_not_the_commits_fault(clones: Clones) -> None:
    clones.configure(install=sh(f'echo nonsense >"{clones.config_file}"'))
    commit = clones.push({"program": "two"})
    assert clones.stage().release.commit == commit
    clones.configure()
    assert clones.known() == {commit: ("staged", None)}


def test_a_good_release_that_the_branch_is_set_back_to_is_rolled_out_again(clones: Clones) -> None:
    first = clones.stage().release.commit
    with clones.center() as center:
        center.releases.record(first, ReleaseState.GOOD)
    clones.deploy(first)
    assert clones.stage().release.state is ReleaseState.GOOD
    with clones.center() as center:
        center.deployments.write(Deployment(Version(None, "")), "rollout.completed")
    staged = clones.stage()
    assert (staged.release.commit, staged.release.state, staged.is_new) == (first, ReleaseState.STAGED, False)


def test_a_release_that_was_made_for_another_schema_is_made_anew(clones: Clones) -> None:
    first = clones.stage().release.commit
    (clones.release(first) / "left").touch()
    with clones.center() as center:
        center.releases.record(first, ReleaseState.GOOD, ledger_schema=SCHEMA + 1)
    assert clones.stage().is_new
    assert not (clones.release(first) / "left").exists()
    with clones.center() as center:
        found = center.releases.find(first)
    assert found is not None
    assert found.fits(SCHEMA)


def test_a_pull_that_stands_still_does_not_keep_the_supervisor_from_going_on(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(clones.root))
    with clones.center() as center, closing(Waiting(center.state.wake, SUPERVISOR)) as waiting:
        version = Version(None, keep_copy(center.config.file, center.state))
        pulling = Pulling(replace(center, version=version), waiting)
        pulling.start_if_due()
        wait_until(clones.is_left, "it has begun")
        for pid in clones.is_left():
            kill_if_there(pid, signal.SIGSTOP)
        pulling.end()
    wait_until(lambda: not clones.is_left(), "it has ended")


def test_a_commit_is_not_to_blame_for_a_pull_that_stood_still_past_its_time_outs(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(clones.root))
    monkeypatch.setattr(staging, "INSTALL_WITHIN_S", 1.0)
    monkeypatch.setattr(steps, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(heart, "BEAT_EVERY_MS", 300)
    clones.configure(install=sh("touch begun; until [ -e ~/goes-on ]; do sleep 0.01; done"))

    def waits_for_the_install(frame: FrameType, event: str, _argument: object) -> str | None:
        begun = event == "c_call" and frame.f_code.co_qualname == "_wait_for_end" and clones.state.exists()
        return "waits" if begun and list(clones.state.glob("releases/*/begun")) else None

    def stage() -> None:
        with suppress(Unavailable):
            clones.stage()
            os._exit(1)

    pull = Stepped(stage, 1, signal.SIGSTOP, waits_for_the_install)
    for pid in clones.is_left():
        kill_if_there(pid, signal.SIGSTOP)
    signal.sigtimedwait([], 1.5)
    for pid in clones.is_left():
        kill_if_there(pid, signal.SIGCONT)
    pull.go_on()
    assert pull.wait() == 0
    assert clones.known() == {}
    (clones.root / "goes-on").touch()
    monkeypatch.undo()
    assert clones.stage().is_new


def test_a_state_directory_from_which_nothing_can_be_imported_is_not_the_commits_fault(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    clones = Clones(tmp_path / "a:b")
    clones.push_own_code()
    with pytest.raises(OperationsCenterError, match=r"cannot make a release in .*; set center\.state_dir"):
        clones.stage()
    assert clones.known() == {}
    assert clones.on_disk() == set()
