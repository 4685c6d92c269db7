"""A backend that runs a program of the user's: an agent CLI or any other command."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from operations_center import config
from operations_center.admission import Limits
from operations_center.config.placeholders import fill_word
from operations_center.environment import is_visible, value_of
from operations_center.keeper.inspect import RUN_ID_VARIABLE
from operations_center.keeper.launch import LaunchPlan
from operations_center.model import Run, Task
from operations_center.presentation import task_as_json

PASSED_ON = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR")
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class CommandBackend:
    """``release`` is the directory that ``{release}`` stands for; ``environment`` is the watcher's own.

    ``config_file`` is the configuration of the fleet.
    """

    settings: config.CommandSettings
    config_file: Path
    release: Path
    environment: Mapping[str, str]
    cgroup_parent: Path | None

    @property
    def kind(self) -> str | None:
        return None

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    @property
    def timeout_ms(self) -> int | None:
        return self.settings.timeout_ms

    @property
    def grace_ms(self) -> int:
        return self.settings.grace_ms

    @property
    def idle_timeout_ms(self) -> int | None:
        return self.settings.idle_timeout_ms

    @property
    def max_output(self) -> int | None:
        return self.settings.max_output_bytes

    def launch_plan(self, run: Run, task: Task, directory: Path) -> LaunchPlan:
        return LaunchPlan(
            run_id=run.run_id,
            run_directory=directory,
            argv=self._argv(run, task, directory),
            environment=self._environment(run, directory),
            secrets=self._secrets(),
            stdin=self.settings.stdin == "prompt",
            working_directory=self.settings.working_directory,
            prompt=task.prompt,
            task_json=msgspec.json.encode(task_as_json(task)),
            timeout_ms=self.settings.timeout_ms,
            idle_timeout_ms=self.settings.idle_timeout_ms,
            grace_ms=self.settings.grace_ms,
            cgroup_parent=self.cgroup_parent,
            max_output=self.settings.max_output_bytes,
        )

    def _argv(self, run: Run, task: Task, directory: Path) -> tuple[str, ...]:
        values = {
            "prompt_file": str(directory / "prompt"),
            "run_id": run.run_id,
            "task_id": run.task_id,
            "title": task.title,
        }
        words = (word.replace("{release}", str(self.release)) for word in self.settings.argv)
        program, *arguments = (fill_word(word, values) for word in words)
        # A program named by a relative path is found beside the configuration, like every other path in it.
        if "/" in program and not program.startswith("/"):
            program = str(self.config_file.parent / program)
        return (program, *arguments)

    def _secrets(self) -> dict[str, str]:
        """The variables that its backend names, but for those that every program may know."""
        values = {name: value_of(name, self.environment) for name in self.settings.env if not is_visible(name)}
        return {name: value for name, value in values.items() if value is not None}

    def _environment(self, run: Run, directory: Path) -> dict[str, str]:
        named = {name for name in self.settings.env if is_visible(name)}
        passed = {
            name: value
            for name, value in self.environment.items()
            if name in PASSED_ON or name.startswith("LC_") or name in named
        }
        return {
            "PATH": DEFAULT_PATH,
            **passed,
            # A command that is run in the run is about this fleet, whatever its working directory.
            config.VARIABLE: str(self.config_file),
            **config.overrides_in_force(self.environment),
            RUN_ID_VARIABLE: run.run_id,
            "OPERATIONS_CENTER_TASK_ID": run.task_id,
            "OPERATIONS_CENTER_TASK_FILE": str(directory / "task.json"),
            "OPERATIONS_CENTER_RUN_DIR": str(directory),
            "OPERATIONS_CENTER_ROLE": run.role,
            "OPERATIONS_CENTER_BACKEND": run.backend,
            "OPERATIONS_CENTER_ATTEMPT": str(run.attempt),
            "OPERATIONS_CENTER_FENCE": str(run.fence),
            "OPERATIONS_CENTER_RELEASE_DIR": str(self.release),
            "OPERATIONS_CENTER_RESULT_FILE": str(directory / "result.json"),
        }
