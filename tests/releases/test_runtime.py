"""Which code a release is run with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from operations_center.releases.runtime import STARTED_WITH, Runtime

COMMIT = "1" * 40
SAYS_WHERE = "import operations_center as found; print(found.__file__)"


def with_code(directory: Path) -> Path:
    package = directory / "operations_center"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys; print(__file__, *sys.argv[1:])")
    return directory


def run(runtime: Runtime, environment: dict[str, str], *words: str) -> str:
    command = runtime.command(*words) if words else runtime.script(SAYS_WHERE)
    done = subprocess.run(
        command, env=runtime.environment(environment), capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


@pytest.mark.parametrize("where", [".", "src"])
def test_a_release_with_code_of_its_own_is_run_with_that(tmp_path: Path, where: str) -> None:
    release = tmp_path / "with a space"
    with_code(release / where)
    runtime = Runtime.of_release(COMMIT, release, "")
    assert runtime.has_own_code
    main = release / where / "operations_center" / "__main__.py"
    assert run(runtime, dict(os.environ), "up", "--detach") == f"{main} up --detach"


def test_a_release_without_code_is_run_with_the_code_of_the_start(tmp_path: Path) -> None:
    runtime = Runtime.of_release(COMMIT, tmp_path, "")
    assert not runtime.has_own_code
    assert run(runtime, dict(os.environ)) == run(Runtime.of_start(tmp_path), dict(os.environ))


def test_a_release_names_its_interpreter(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "my python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    runtime = Runtime.of_release(COMMIT, tmp_path, "bin/my python")
    assert runtime.has_own_code
    assert runtime.command("status")[0] == str(python)


def test_the_environment_of_one_release_leads_to_another_and_back(tmp_path: Path) -> None:
    releases = [Runtime.of_release(COMMIT, with_code(tmp_path / name), "") for name in "ab"]
    before = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path / 'mine'}"}
    environment = before
    for runtime in releases:
        environment = runtime.environment(environment)
        assert run(runtime, environment) == f"{runtime.directory}/operations_center/__init__.py"
        assert environment["PYTHONPATH"] == f"{runtime.directory}{os.pathsep}{tmp_path / 'mine'}"
    assert Runtime.of_start(tmp_path).environment(environment) == before | {STARTED_WITH: sys.executable}
