"""A real remote, an author who pushes to it, and the user's clone of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import operations_center
from operations_center.admission import Limits
from operations_center.boards.local import NewTask
from operations_center.config import load_config
from operations_center.ledger import Admission
from operations_center.model import Run
from operations_center.releases.config_copies import keep_copy
from operations_center.releases.deployment import Deployment, Version
from operations_center.releases.repository import Repository
from operations_center.releases.staging import Staged, Staging
from operations_center.wiring import Center, open_center

PACKAGE = Path(operations_center.__file__).parent

CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["cat"]
max_concurrent = 1
env = ["SECRET_KEY"]
[code_pull]
"""


@dataclass
class Clones:
    root: Path
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.git(self.root, "init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        self.git(self.root, "clone", "--quiet", str(self.remote), str(self.author))
        self.configure()
        self.push({"program": "one", "operations_center.toml": CONFIG, ".gitignore": ".operations_center\n"})
        self.git(self.root, "clone", "--quiet", str(self.remote), str(self.clone))

    @property
    def remote(self) -> Path:
        return self.root / "the remote.git"

    @property
    def author(self) -> Path:
        return self.root / "the author's"

    @property
    def clone(self) -> Path:
        return self.root / "a clone"

    @property
    def config_file(self) -> Path:
        return self.root / "configured" / "operations_center.toml"

    @property
    def state(self) -> Path:
        return self.config_file.parent / ".operations_center"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "HOME": str(self.root),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org",
            "SECRET_KEY": f"a secret of {self.root}",
        }

    def git(self, directory: Path, *words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=directory, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    def configure(self, **keys: str) -> None:
        """``code_pull`` with these keys, as TOML spells their values, in a file outside of the clone."""
        keys = {"repository": f"'{self.clone}'".replace("'", '"')} | keys
        self.config_file.parent.mkdir(exist_ok=True)
        self.config_file.write_text(CONFIG + "".join(f"{key} = {value}\n" for key, value in keys.items()))

    def push(self, files: dict[str, str], *, force: bool = False) -> str:
        """A commit with these files changed; its id."""
        for name, text in files.items():
            path = self.author / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git(self.author, "add", "--all", "--force")
        self.git(self.author, "commit", "--quiet", "--allow-empty", "--message", "a change")
        self.git(self.author, "push", "--quiet", *(["--force"] if force else []), "origin", "HEAD:main")
        return self.git(self.author, "rev-parse", "HEAD")

    def push_own_code(self, changes: dict[str, tuple[str, str]] | None = None) -> str:
        """A commit with this program in it, in which some words of some files are others."""
        package = self.author / "operations_center"
        if not package.exists():
            shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, (old, new) in (changes or {}).items():
            text = (package / name).read_text()
            assert old in text, (name, old)
            (package / name).write_text(text.replace(old, new, 1))
        return self.push({})

    def force_push(self, files: dict[str, str]) -> str:
        """A commit that has not the last one behind it."""
        self.git(self.author, "reset", "--quiet", "--hard", "HEAD^")
        return self.push(files, force=True)

    def repository(self, directory: Path | None = None, *, within_s: float = 60.0, **changes: str) -> Repository:
        settings = {"remote": "origin", "branch": "main"} | changes
        return Repository(directory or self.clone, **settings, environment=self.environment, fetch_within_s=within_s)

    @contextmanager
    def center(self) -> Iterator[Center]:
        center = open_center(load_config(self.config_file, self.environment))
        try:
            yield center
        finally:
            center.close()

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        with self.center() as center:
            yield Staging(
                center.config,
                center.state.config_copy(keep_copy(center.config.file, center.state)),
                center.state,
                center.releases,
                center.deployments,
                center.ledger,
                self.environment,
                self.told.append,
            )

    def stage(self, *, again: bool = False) -> Staged:
        with self.staging() as staging:
            return staging.stage(again=again)

    def deploy(self, commit: str) -> None:
        """As a fleet leaves it that has rolled the release out."""
        with self.center() as center:
            center.deployments.write(Deployment(Version(commit, "")), "rollout.completed")

    def command(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "operations_center", *words, "--config", str(self.config_file)],
            env=self.environment,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, expect: int = 0) -> tuple[str, str]:
        """What a command prints, and what it complains of."""
        with self.command(*words) as process:
            out, err = process.communicate()
        assert process.returncode == expect, (words, out, err)
        return out, err

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json")[0])

    def release(self, commit: str) -> Path:
        return self.state / "releases" / commit

    def known(self) -> dict[str, tuple[str, str | None]]:
        """State and reason of every release that the ledger has."""
        with self.center() as center:
            assert center.ledger.verify() == []
            return {each.commit: (str(each.state), each.reason) for each in center.releases.all()}

    def on_disk(self) -> set[str]:
        return {path.name for path in (self.state / "releases").iterdir()}

    def is_left(self) -> list[int]:
        """Processes that have this directory for their home."""
        entry = f"HOME={self.root}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if entry in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def open_run_of(center: Center, commit: str) -> Run:
    (task_id,) = center.board.add([NewTask("a task", "goal")])
    run = center.ledger.admit(
        Admission(
            task_id, "goal", "agent", Limits(9), center.host, center.me, grace_ms=1, timeout_ms=None, release=commit
        )
    )
    assert isinstance(run, Run)
    return run
