"""Whether a release can work here, asked in processes of its own code.

imports     every module of it can be imported, and is its own
config      it likes the configuration that is in force, and the one that it brings with it, if any
schema      it reads and writes the ledger as the running code does: while it is rolled out, both work with it
rehearsal   a fleet of its own in a directory of its own starts, runs tasks, restarts and stops
preflight   the user's own commands pass, in its directory

A release without code of its own is asked only what concerns it: config and the user's commands.
"""

from dataclasses import dataclass
from pathlib import Path

from operations_center.config import Config
from operations_center.releases.rehearsal import rehearse
from operations_center.releases.runtime import Runtime
from operations_center.releases.steps import Refused, Steps
from operations_center.store import SCHEMA

LOOK_WITHIN_S = 30.0
COMMAND_WITHIN_S = 300.0

IMPORTS = """
import pkgutil, sys
try:
    import operations_center
except Exception as error:
    sys.exit(f"cannot import operations_center: {type(error).__name__}: {error}")
where = operations_center.__path__[0]
if sys.argv[1:] not in ([], [where]):
    sys.exit(f"its operations_center is imported from {where}")
def failed(name):
    error = sys.exc_info()[1]
    if isinstance(error, SyntaxError):
        error = f"{error.msg} ({error.filename}, line {error.lineno})"
    sys.exit(f"cannot import {name}: {sys.exc_info()[0].__name__}: {error}")
for module in pkgutil.walk_packages(operations_center.__path__, "operations_center.", failed):
    if not module.name.endswith(".__main__"):
        try:
            __import__(module.name)
        except Exception:
            failed(module.name)
"""

SCHEMA_OF = "from operations_center.store import SCHEMA; print(SCHEMA)"


@dataclass(frozen=True, slots=True)
class Preflight:
    """``config_copy`` is what ``config`` was read from. ``steps`` run in the release; ``scratch`` may be made.

    ``own_config`` is the configuration that the release brings.
    """

    config: Config
    config_copy: Path
    runtime: Runtime
    steps: Steps
    scratch: Path
    own_config: Path | None

    def examine(self) -> None:
        """Raises Refused with the first step that fails, Unavailable, OSError."""
        if self.runtime.has_own_code:
            self._imports()
        self._likes_config()
        if self.runtime.has_own_code:
            self._knows_schema()
            rehearse(self.runtime, self.steps, self.scratch)
        self._passes_commands()

    def _imports(self) -> None:
        path = self.runtime.import_path
        where = [] if path is None else [str(path / "operations_center")]
        self.steps.run("imports", self.runtime.script(IMPORTS, *where), within_s=LOOK_WITHIN_S)

    def _likes_config(self) -> None:
        self._check_config("config check", self.config.file, "--copy", str(self.config_copy))
        if self.own_config is not None:
            self._check_config("config check of its own file", self.own_config)

    def _check_config(self, name: str, file: Path, *words: str) -> None:
        command = self.runtime.command("config", "check", "--config", str(file), *words)
        self.steps.run(name, command, within_s=LOOK_WITHIN_S)

    def _knows_schema(self) -> None:
        answer = self.steps.run("schema", self.runtime.script(SCHEMA_OF), within_s=LOOK_WITHIN_S).strip()
        if answer != str(SCHEMA):
            raise Refused(
                f"schema: the ledger has schema {SCHEMA} and this code {answer}: they cannot work side by side; "
                "stop the fleet and start it with this code"
            )

    def _passes_commands(self) -> None:
        assert self.config.code_pull is not None
        for command in self.config.code_pull.preflight:
            self.steps.run(f"preflight {' '.join(command)}", command, within_s=COMMAND_WITHIN_S)
