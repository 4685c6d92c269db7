"""What an executor gets from its keeper, and what the keeper records."""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from operations_center.identity import Process
from operations_center.keeper import launch
from operations_center.keeper.inspect import (
    ExitRecord,
    GateState,
    ProcessTable,
    UnreadableExit,
    read_exit,
    read_gate,
    read_timed_out,
)
from operations_center.keeper.launch import RunDirectoryExists, prepare, revoke, start
from operations_center.keeper.script import Script, start_script
from operations_center.locks import is_locked
from tests.fleet import PATIENCE_S, wait_until

from .conftest import (
    DAEMON,
    SIGNALS_THAT_END,
    Bench,
    exit_code,
    output,
    python,
    wait_for_end,
)

LOOK_AROUND = """
import json, os
status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)
fds = os.listdir('/proc/self/fd')
print(json.dumps({
    'fds': sorted(fd for fd in fds if os.path.lexists('/proc/self/fd/' + fd)),
    'ignored': int(status['SigIgn'], 16), 'blocked': int(status['SigBlk'], 16),
    'caught': int(status['SigCgt'], 16), 'session': os.getsid(0), 'pid': os.getpid(),
    'directory': os.getcwd(), 'environment': dict(os.environ)}))
"""


def look_around(bench: Bench, **changes: object) -> dict[str, object]:
    plan = bench.finish(*python(LOOK_AROUND), **changes)
    facts: dict[str, object] = json.loads(output(plan))
    return facts


def test_an_executor_inherits_nothing_but_its_three_descriptors(bench_both_ways: Bench) -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        facts = look_around(bench_both_ways, timeout_ms=60_000)
    finally:
        os.close(descriptor)
    assert facts["fds"] == ["0", "1", "2"]


def test_an_executor_has_default_signal_handling_whatever_its_launcher_ignores_and_blocks(bench: Bench) -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS_THAT_END}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM})
    try:
        facts = look_around(bench, timeout_ms=60_000)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    by_python_itself = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert facts["blocked"] == 0
    assert int(str(facts["ignored"])) & ~by_python_itself == 0


def test_a_run_has_a_session_of_its_own(bench: Bench) -> None:
    facts = look_around(bench)
    assert facts["session"] == facts["pid"]
    assert facts["session"] != bench.runs[0].keeper.pid


def test_the_environment_is_the_plans_and_the_run_id(bench: Bench) -> None:
    given = {"PATH": os.environ["PATH"], "work": "kept", "_code": "x", "ticks": "7", "EMPTY": ""}
    facts = look_around(bench, environment=given)
    seen = facts["environment"]
    assert isinstance(seen, dict)
    assert seen["OPERATIONS_CENTER_RUN_ID"] == bench.plans[0].run_id
    assert {name: seen[name] for name in given if name != "_code"} == {
        name: value for name, value in given.items() if name != "_code"
    }
    assert set(seen) - set(given) <= {"OPERATIONS_CENTER_RUN_ID", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}


def test_the_prompt_comes_on_stdin(bench: Bench) -> None:
    assert output(bench.finish("cat")) == "Title\n\nBody"


def test_without_a_prompt_stdin_is_empty(bench: Bench) -> None:
    plan = bench.finish("cat", stdin=False)
    assert (output(plan), exit_code(plan)) == ("", 0)


def test_a_fresh_working_directory_is_made(bench: Bench) -> None:
    plan = bench.finish("pwd")
    assert output(plan).strip() == str(plan.run_directory / "work")


def test_a_configured_working_directory_is_used(bench: Bench, tmp_path: Path) -> None:
    assert output(bench.finish("pwd", working_directory=tmp_path)).strip() == str(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 3, 75, 255])
def test_the_exit_code_is_recorded(bench: Bench, code: int) -> None:
    plan = bench.finish("sh", "-c", f"exit {code}")
    assert exit_code(plan) == code
    assert (plan.run_directory / "exit").stat().st_size == 64


def test_a_program_that_is_missing_is_recorded_as_127_with_the_reason(bench: Bench) -> None:
    plan = bench.finish("no-such-program", "x")
    assert exit_code(plan) == 127
    assert "no-such-program" in output(plan, "stderr")


def test_a_program_that_cannot_be_executed_is_recorded_as_126_with_the_reason(bench: Bench) -> None:
    program = bench.directory / "plain file"
    program.write_text("echo no\n")
    program.chmod(0o600)
    plan = bench.finish(str(program))
    assert exit_code(plan) == 126
    assert "plain file" in output(plan, "stderr")


def test_a_working_directory_that_is_gone_is_recorded_as_126_with_the_reason(bench: Bench) -> None:
    plan = bench.finish("touch", "ran", working_directory=bench.directory / "gone")
    assert exit_code(plan) == 126
    assert "gone" in output(plan, "stderr")


@pytest.mark.parametrize("name", ["stdout", "stderr", "prompt"])
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_run_whose_files_cannot_be_opened_runs_nothing_and_asks_for_a_later_retry(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, shell: str
) -> None:
    if not Path(shell).exists():
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "sh").symlink_to(shell)
    monkeypatch.setattr("operations_center.keeper.script.SHELL", str(tmp_path / "sh"))
    plan = bench.plan("touch", "ran")
    prepare(plan)
    (plan.run_directory / name).unlink(missing_ok=True)
    (plan.run_directory / name).symlink_to("gone/gone")
    run = start(plan)
    bench.runs.append(run)
    run.children[0].wait(timeout=PATIENCE_S)
    assert exit_code(plan) == 75
    assert not (plan.run_directory / "work" / "ran").exists()


NOBODY = 54321


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that other users may enter, as they may not enter those of the tests."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_a_keeper_that_is_given_no_process_records_that_and_asks_for_a_later_retry(open_directory: Path) -> None:
    plan = Bench(open_directory).plan("touch", "ran")
    prepare(plan)

    def give_no_process() -> None:
        if os.geteuid() == 0:
            # Root is given every process that it asks for.
            for path in (plan.run_directory, plan.run_directory / "exit"):
                os.chown(path, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    keeper = start_script(
        launch._KEEPER,
        [str(plan.run_directory), str(plan.run_directory / "work"), os.devnull, os.devnull, "/bin/setsid", *plan.argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        environment={},
        before=give_no_process,
    )
    keeper.wait(timeout=PATIENCE_S)
    assert "fork" in output(plan, "stderr").lower()
    assert read_gate(plan.run_directory).state is GateState.KEEPER
    assert exit_code(plan) == 75
    assert not (plan.run_directory / "work" / "ran").exists()


@pytest.mark.parametrize("argv", [("exit", "0"), ("eval", "exit 0"), ("return",), ("set", "-e")])
def test_words_that_only_a_shell_knows_are_programs_that_are_missing(bench: Bench, argv: tuple[str, ...]) -> None:
    assert exit_code(bench.finish(*argv)) == 127


def test_a_builtin_that_is_a_program_too_is_run_as_a_program(bench: Bench) -> None:
    assert output(bench.finish("echo", "$HOME; `false` *", 'a"b', "")).endswith('$HOME; `false` * a"b \n')


@pytest.mark.parametrize("name", ["KILL", "TERM", "INT", "QUIT", "SEGV", "PIPE"])
def test_death_by_a_signal_is_recorded_as_128_and_its_number(bench: Bench, name: str) -> None:
    plan = bench.finish("sh", "-c", f"ulimit -c 0; kill -{name} $$")
    assert exit_code(plan) == 128 + signal.Signals[f"SIG{name}"]


def test_a_signal_to_the_whole_group_does_not_take_the_record(bench: Bench) -> None:
    for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM", "PIPE"):
        plan = bench.finish("sh", "-c", f"ulimit -c 0; kill -{name} 0; sleep 60")
        assert exit_code(plan) == 128 + signal.Signals[f"SIG{name}"]


def test_the_gate_names_the_keeper_and_the_lock_is_held_as_long_as_it_lives(bench: Bench) -> None:
    plan, run = bench.launch("sleep", "300")
    wait_until(lambda: read_gate(plan.run_directory).state is GateState.KEEPER, "the gate")
    assert read_gate(plan.run_directory).claimed == run.keeper
    assert is_locked(plan.run_directory / "lock")
    assert read_exit(plan.run_directory) is None
    os.kill(run.keeper.pid, signal.SIGKILL)
    run.children[0].wait()
    wait_until(lambda: not is_locked(plan.run_directory / "lock"), "the lock to be free")


def test_other_shells_keep_runs_as_well(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not Path("/bin/bash").exists():
        pytest.skip("there is no bash here")
    shell = tmp_path / "sh"
    shell.symlink_to("/bin/bash")
    monkeypatch.setattr("operations_center.keeper.script.SHELL", str(shell))
    facts = look_around(bench, timeout_ms=60_000)
    assert facts["fds"] == ["0", "1", "2"]
    assert facts["blocked"] == 0
    assert exit_code(bench.finish("no-such-program")) == 127
    assert exit_code(bench.finish("exit", "0")) == 127
    assert exit_code(bench.finish("sh", "-c", "kill -TERM 0; sleep 60")) == 143
    plan, run = bench.launch("sleep", "300", timeout_ms=1_000, grace_ms=60_000)
    run.children[0].wait(timeout=PATIENCE_S)
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (143, "wall")
    revoked = bench.plan("touch", "ran")
    prepare(revoked)
    assert revoke(revoked.run_directory)
    start(revoked).children[0].wait()
    assert not (revoked.run_directory / "work" / "ran").exists()


def test_a_keeper_waits_for_a_daemon_also_where_the_kernel_lists_no_children(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = launch._KEEPER.text.replace("/children", "/no-such-file")
    monkeypatch.setattr("operations_center.keeper.launch._KEEPER", Script("keeper", text))
    plan, run = bench.launch(*python(DAEMON), timeout_ms=3_000, grace_ms=100)
    wait_until(lambda: read_exit(plan.run_directory), "the exit record")
    assert run.children[0].poll() is None
    assert run.children[0].wait(timeout=PATIENCE_S) == 0
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (0, None)


def test_limits_hold_without_a_path(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    plan = bench.finish("/bin/sleep", "300", timeout_ms=1_000, grace_ms=60_000, environment={})
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (143, "wall")


def test_a_directory_that_exists_is_left_to_its_owner(bench: Bench) -> None:
    plan = bench.plan("true")
    plan.run_directory.mkdir()
    with pytest.raises(RunDirectoryExists):
        prepare(plan)
    assert list(plan.run_directory.iterdir()) == []


def test_the_run_directory_and_its_files_are_private(bench: Bench) -> None:
    plan = bench.plan("true")
    prepare(plan)
    assert plan.run_directory.stat().st_mode & 0o077 == 0
    assert [path for path in plan.run_directory.iterdir() if path.stat().st_mode & 0o077] == []


def test_a_prompt_that_is_no_unicode_is_written_all_the_same(bench: Bench) -> None:
    plan = bench.plan("true", prompt="a \ud800 b")
    prepare(plan)
    assert (plan.run_directory / "prompt").read_text() == "a ? b"


@pytest.mark.parametrize("argv", [("x" * 3_000_000,), ("true", "a\0b")])
def test_a_run_that_cannot_be_spawned_leaves_no_process_and_no_descriptor(bench: Bench, argv: tuple[str, ...]) -> None:
    plan = bench.plan(*argv, timeout_ms=60_000)
    prepare(plan)
    before = sorted(os.listdir("/proc/self/fd")), children()
    with pytest.raises((OSError, ValueError)):
        start(plan)
    assert (sorted(os.listdir("/proc/self/fd")), children()) == before
    assert not is_locked(plan.run_directory / "lock")
    assert revoke(plan.run_directory)


def children() -> set[int]:
    """Also those that have ended and were not waited for."""
    processes = ProcessTable.scan(with_environments=False).processes
    return {pid for pid, facts in processes.items() if facts.parent == os.getpid()}


def test_starting_a_run_leaves_no_descriptor(bench_both_ways: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    bench_both_ways.launch("sleep", "300", timeout_ms=60_000)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_run_can_be_started_from_a_thread(bench: Bench) -> None:
    threads = [threading.Thread(target=bench.finish, args=("sh", "-c", "exit 3")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [exit_code(plan) for plan in bench.plans] == [3] * 8


LAUNCH_AND_WAIT = """
import sys, time
from pathlib import Path
from operations_center.keeper.launch import LaunchPlan, prepare, start
plan = LaunchPlan(
    run_id=sys.argv[1], run_directory=Path(sys.argv[2]), argv=tuple(sys.argv[3:]),
    environment={"PATH": "/usr/bin:/bin"}, stdin=False, working_directory=None, prompt="", task_json=b"{}",
    timeout_ms=None, idle_timeout_ms=None, grace_ms=100, cgroup_parent=None)
prepare(plan)
run = start(plan)
print(*run.keeper, flush=True)
time.sleep(300)
"""


def test_a_run_outlives_the_kill_of_its_launcher(bench: Bench) -> None:
    os.mkfifo(bench.directory / "go")
    plan = bench.plan("sh", "-c", "read -r line <../../go; echo $line; exit 5")
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH_AND_WAIT, plan.run_id, str(plan.run_directory), *plan.argv],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    keeper = Process(*map(int, launcher.stdout.readline().split()))
    launcher.kill()
    launcher.communicate()
    assert is_locked(plan.run_directory / "lock")
    (bench.directory / "go").write_text("went on\n")
    wait_for_end(keeper)
    assert (output(plan), exit_code(plan)) == ("went on\n", 5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b" " * 63 + b"\n", None),
        (b"", None),
        (b"exit 0 end".ljust(63) + b"\n", ExitRecord(0)),
        (b"exit 137 end".ljust(63) + b"\n", ExitRecord(137)),
    ],
)
def test_an_exit_record_is_read(tmp_path: Path, content: bytes, expected: object) -> None:
    (tmp_path / "exit").write_bytes(content)
    assert read_exit(tmp_path) == expected


@pytest.mark.parametrize("content", [b"exit 0".ljust(63) + b"\n", b"exit x end\n", b"\0" * 64, b"\xff" * 64])
def test_a_torn_exit_record_is_unreadable_and_not_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "exit").write_bytes(content)
    assert isinstance(read_exit(tmp_path), UnreadableExit)


def test_an_exit_record_that_is_a_fifo_or_a_link_is_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "exit")
    assert isinstance(read_exit(tmp_path), UnreadableExit)
    (tmp_path / "exit").unlink()
    (tmp_path / "exit").symlink_to("/etc/passwd")
    assert isinstance(read_exit(tmp_path), UnreadableExit)


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "small disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a tmpfs")
    return path


def test_a_full_disk_swallows_neither_the_exit_record_nor_the_time_out(full_disk: Path) -> None:
    bench = Bench(full_disk)
    fill = "head -c 1000000 /dev/zero >fill; head -c 1000000 /dev/zero; sleep 300"
    try:
        plan, run = bench.launch("sh", "-c", fill, timeout_ms=3_000, grace_ms=60_000)
        run.children[0].wait(timeout=PATIENCE_S)
        assert os.statvfs(full_disk).f_bavail == 0
        assert exit_code(plan) == 143
        assert read_timed_out(plan.run_directory) == "wall"
    finally:
        bench.clean_up()
        subprocess.run(["umount", "-l", str(full_disk)], check=True)


def test_much_output_goes_to_the_file_and_not_into_our_memory(bench: Bench) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = bench.finish("head", "-c", "200000000", "/dev/zero")
    assert (plan.run_directory / "stdout").stat().st_size == 200_000_000
    (plan.run_directory / "stdout").unlink()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_a_keeper_starts_its_executor_within_milliseconds(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    latencies = []
    for _ in range(30):
        plan = bench.plan("sh", "-c", ": >started")
        prepare(plan)
        fifo = plan.run_directory / "work" / "started"
        os.mkfifo(fifo)
        began = time.perf_counter()
        bench.runs.append(start(plan))
        # Opening a FIFO returns when the executor, whose first instruction this is, opens it too.
        os.close(os.open(fifo, os.O_RDONLY))
        latencies.append(time.perf_counter() - began)
    with capsys.disabled():
        print(f" [start to executor: median {statistics.median(latencies) * 1000:.1f} ms]", end="")
    # The quickest of them: a wait that is built in shows in each, the load of the machine only in some.
    assert min(latencies) < 0.25


def test_secrets_reach_the_executor_and_are_shown_by_no_process_of_ours(bench: Bench) -> None:
    secrets = {"KEY": "two\nlines, 'quotes', $HOME and \udcff", "LARGE": "x" * 100_000, "EMPTY": ""}
    facts = look_around(bench, secrets=secrets)
    seen = facts["environment"]
    assert isinstance(seen, dict)
    assert {name: seen[name] for name in secrets} == secrets
    assert facts["fds"] == ["0", "1", "2"]
    _, run = bench.launch("sleep", "1000", secrets=secrets)
    wait_until(lambda: any(b"KEY=two" in shown_by(pid) for pid in children_of(run.keeper)), "the executor")
    for process in run.children:
        assert b"quotes" not in shown_by(process.pid)
        for path in Path(f"/proc/{process.pid}/fd").iterdir():
            if os.readlink(path).startswith("/memfd:"):
                assert b"quotes" not in path.read_bytes()
            elif os.readlink(path).startswith("pipe:") and path.name == "6":
                assert path.read_bytes() == b""


def shown_by(pid: int) -> bytes:
    """What every program of the user can read of a process."""
    with suppress(OSError):
        return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
    return b""


def children_of(process: Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_secret_that_no_variable_can_hold_starts_nothing(bench: Bench) -> None:
    with pytest.raises(ValueError, match="null byte"):
        bench.launch("true", secrets={"KEY": "a\0b"})
