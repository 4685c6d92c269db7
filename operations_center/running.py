"""Find the fleet of a configuration that runs, and what it was started with.

The file may say something else by now, or nothing that can be read. A fleet goes on with the configuration that was
rolled out last, and every command that asks or steers it has to use that one, too. Hints tell where the state lies when
the file names another place: the pointer beside the file, and the run that a command is a part of. What they name is
a fleet of this file only if its directory is ours, its heartbeats say so, and the kernel shows that something lives.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from operations_center.clock import rfc3339
from operations_center.config import Config, load_config
from operations_center.config.discovery import candidates, find_config
from operations_center.config.overrides import value_of_override
from operations_center.errors import ConfigError
from operations_center.files import read_file
from operations_center.fleet import look_at, survivors
from operations_center.identity import is_alive
from operations_center.keeper.forgotten import living_runs_below
from operations_center.pointer import read_pointers, write_pointer
from operations_center.pulse import Pulse, read_pulse
from operations_center.releases.config_copies import LARGEST, name_of
from operations_center.state_directory import SUPERVISOR, WATCHDOG, StateDirectory
from operations_center.text import on_one_line

STATE_DIR = ("center", "state_dir")
RUN_DIRECTORY_VARIABLE = "OPERATIONS_CENTER_RUN_DIR"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """How the file differs from the configuration that a fleet runs; all None where it does not, or where none runs.

    ``changed_at``: when it was written, in wall-clock ms. ``problem``: why it cannot be used. ``state_dir``: where it
    says that the state lies, if that is elsewhere. ``copy``: the name of the copy that the fleet runs.
    """

    copy: str | None = None
    changed_at: int | None = None
    problem: str | None = None
    state_dir: Path | None = None


def config_of_fleet(file: Path, environ: Mapping[str, str]) -> Config:
    """Read the configuration that the fleet of a file runs, or the file where none runs. Raises ConfigError."""
    try:
        present = load_config(file, environ)
    except ConfigError:
        if (config := _elsewhere(file, environ, None)) is not None:
            return config
        raise
    root = present.center.state_dir
    if _is_one_running(StateDirectory(root)):
        return _running_in(root, file, environ) or present
    return _elsewhere(file, environ, root) or present


def file_of_fleet(explicit: Path | None, environ: Mapping[str, str], cwd: Path | None) -> Path:
    """Find the file like ``find_config``; one that is gone counts as well while its fleet runs. Raises ConfigError."""
    for file in candidates(explicit, environ, cwd):
        if os.path.lexists(file):
            break
        if _elsewhere(file, environ, None) is not None:
            return file
    return find_config(explicit, environ, cwd)


def note_place(config: Config, environ: Mapping[str, str]) -> None:
    """Note where the state of a configuration lies, for when the file says something else; best effort."""
    if value_of_override(STATE_DIR, environ) is None:
        write_pointer(config.file, config.center.state_dir, environ)


def file_facts(config: Config, environ: Mapping[str, str]) -> FileFacts:
    """Compare the file with the configuration that its fleet runs, which is ``config``."""
    state = StateDirectory(config.center.state_dir)
    copy = _copy_in(state, config.file) if _is_one_running(state) else None
    name = copy.name if copy is not None else None
    try:
        content = read_file(os.path.realpath(config.file), LARGEST)
        written_at = os.stat(config.file).st_mtime_ns // 1_000_000
    except OSError as error:
        return FileFacts(name, problem=f"{error.strerror or error}")
    changed_at = written_at if name is not None and name_of(content) != name else None
    try:
        named = load_config(config.file, environ).center.state_dir
    except ConfigError as error:
        return FileFacts(name, changed_at, problem=error.lines[0].removeprefix(f"cannot use {config.file}: "))
    is_moved = os.path.realpath(named) != os.path.realpath(state.root)
    return FileFacts(name, changed_at, state_dir=named if is_moved else None)


def fleet_elsewhere(config: Config, environ: Mapping[str, str]) -> Path | None:
    """Return the state directory of a living fleet of this file that is not the one which the file names."""
    found = _elsewhere(config.file, environ, config.center.state_dir)
    return found.center.state_dir if found is not None else None


def is_role_removed(name: str, own_copy: str, config: Config, environ: Mapping[str, str]) -> bool:
    """Return whether a living supervisor has rolled out a configuration without this role.

    ``own_copy`` is the one that the caller was started with, and that has the role.
    """
    state = StateDirectory(config.center.state_dir)
    pulse = read_pulse(state.pulse(SUPERVISOR))
    if pulse is None or pulse.config in ("", own_copy) or look_at(state, SUPERVISOR).process is None:
        return False
    rolled_out = _running_in(state.root, config.file, environ)
    return rolled_out is not None and name not in rolled_out.roles


def config_as_json(config: Config, facts: FileFacts) -> dict[str, Any]:
    """Show which configuration counts, and how its file differs, as the contract's JSON does."""
    return {
        "file": str(config.file),
        "copy": facts.copy,
        "changed_at": rfc3339(facts.changed_at),
        "problem": facts.problem,
        "state_dir": str(config.center.state_dir),
        "state_dir_of_file": str(facts.state_dir) if facts.state_dir else None,
    }


def difference_in_words(config: Config, facts: FileFacts) -> str | None:
    """Say in one line how the file differs from what the fleet runs, and what to do; None where it does not."""
    if facts.problem is not None:
        words = f"{config.file} is broken: {facts.problem}; the fleet goes on with what it was before"
    elif facts.state_dir is not None:
        words = (
            f"the fleet runs in {config.center.state_dir}, and {config.file} says {facts.state_dir}: "
            "put center.state_dir back, or stop the fleet before you start it again"
        )
    elif facts.changed_at is not None:
        when = rfc3339(facts.changed_at)
        words = f"{config.file} has changed since {when}: `operations-center restart` has the fleet take it up"
    else:
        return None
    return on_one_line(words)


def _elsewhere(file: Path, environ: Mapping[str, str], root: Path | None) -> Config | None:
    """Read the configuration of a fleet whose state does not lie in ``root``, by the hints that there are."""
    for hint in _hints(file, environ):
        is_root = root is not None and os.path.realpath(hint) == os.path.realpath(root)
        if not is_root and (config := _running_in(hint, file, environ)) is not None and _is_alive(hint):
            return config
    return None


def _hints(file: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield where the state of a file may lie. An override is the word of whoever gives the command."""
    if named := value_of_override(STATE_DIR, environ):
        yield file.parent / os.path.expanduser(named)
        return
    if run_directory := environ.get(RUN_DIRECTORY_VARIABLE):
        yield Path(os.path.dirname(os.path.dirname(run_directory)))
    for noted in read_pointers(file, environ):
        yield noted.state_dir


def _running_in(root: Path, file: Path, environ: Mapping[str, str]) -> Config | None:
    """Read the copy that the fleet of a file runs in a state directory, as if it stood in the file."""
    copy = _copy_in(StateDirectory(root), file)
    if copy is None:
        return None
    try:
        config = load_config(file, environ, copy)
    except ConfigError:
        return None
    return replace(config, center=replace(config.center, state_dir=root))


def _copy_in(state: StateDirectory, file: Path) -> Path | None:
    """Return the copy that was rolled out last, by the heartbeats of a fleet of the file in a directory of ours."""
    if not _is_ours(state.root):
        return None
    for pulse in _pulses(state):
        if pulse.config_file == os.path.realpath(file) and pulse.config:
            copy = state.config_copy(pulse.config)
            return copy if copy.is_file() else None
    return None


def _pulses(state: StateDirectory) -> list[Pulse]:
    """Read heartbeats: those of the living first, and the supervisor's before the others, which follow it."""
    others = sorted(path.name.removesuffix(".json") for path in (state.root / "pulse").glob("*.json"))
    pulses = [read_pulse(state.pulse(name)) for name in dict.fromkeys((SUPERVISOR, WATCHDOG, *others))]
    return sorted((pulse for pulse in pulses if pulse is not None), key=lambda pulse: not is_alive(pulse.process))


def _is_ours(root: Path) -> bool:
    try:
        facts = os.lstat(root)
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def _is_alive(root: Path) -> bool:
    """Return whether something of a fleet runs there, be it only an executor."""
    state = StateDirectory(root)
    return _is_ours(root) and (_is_one_running(state) or bool(living_runs_below(state.runs)))


def _is_one_running(state: StateDirectory) -> bool:
    return look_at(state, SUPERVISOR).process is not None or bool(survivors(state))
