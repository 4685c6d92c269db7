"""Which configuration a fleet runs, and where: by locks and heartbeats of this very process."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from operations_center.config import load_config
from operations_center.errors import ConfigError
from operations_center.locks import take_lock
from operations_center.pointer import write_pointer
from operations_center.pulse import read_pulse
from operations_center.releases.config_copies import keep_copy
from operations_center.releases.deployment import Version
from operations_center.running import config_of_fleet, file_facts, file_of_fleet, is_role_removed, note_place
from operations_center.state_directory import SUPERVISOR, StateDirectory
from operations_center.wiring import open_center

CONFIG = """
[center]
state_dir = "STATE"
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["cat"]
max_concurrent = 1
"""


@dataclass
class Site:
    """A directory with a configuration; ``start`` makes this process hold the lock of its supervisor."""

    directory: Path
    locks: ExitStack
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.directory / "operations_center.toml"

    def write(self, state: str = "state", text: str = CONFIG) -> None:
        self.file.write_text(text.replace("STATE", state))

    def start(self) -> StateDirectory:
        config = load_config(self.file, self.environ)
        state = StateDirectory(config.center.state_dir)
        state.create()
        version = Version(None, keep_copy(self.file, state))
        with closing(open_center(config, version=version)) as center:
            center.heart(SUPERVISOR).beat("up")
        self.locks.callback(os.close, take_lock(state.supervisor_lock, "the supervisor"))
        note_place(config, self.environ)
        return state

    def root(self) -> Path:
        return config_of_fleet(self.file, self.environ).center.state_dir


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    # This process stands for those of a fleet.
    monkeypatch.setattr("operations_center.fleet.is_one_of_ours", lambda pid: pid == os.getpid())
    with ExitStack() as locks:
        yield locks


@pytest.fixture
def site(tmp_path: Path, locks: ExitStack) -> Site:
    site = Site(tmp_path / "site", locks)
    site.directory.mkdir()
    site.write()
    return site


def test_a_broken_file_matters_only_where_no_fleet_runs(site: Site, locks: ExitStack) -> None:
    state = site.start()
    site.file.write_text("broken")
    config = config_of_fleet(site.file, {})
    assert (config.center.state_dir, list(config.roles)) == (state.root, ["goal"])
    assert (file_facts(config, {}).problem or "").startswith("line 1: it is not TOML")
    locks.close()
    with pytest.raises(ConfigError):
        config_of_fleet(site.file, {})


def test_a_changed_file_does_not_count_before_it_is_rolled_out(site: Site) -> None:
    site.start()
    assert file_facts(config_of_fleet(site.file, {}), {}).changed_at is None
    site.write(text=CONFIG.replace("roles.goal", "roles.new"))
    config = config_of_fleet(site.file, {})
    assert list(config.roles) == ["goal"]
    facts = file_facts(config, {})
    assert (facts.changed_at, facts.problem) == (site.file.stat().st_mtime_ns // 1_000_000, None)


def test_a_fleet_whose_state_directory_was_edited_away_is_found(site: Site) -> None:
    state = site.start()
    site.write("elsewhere")
    config = config_of_fleet(site.file, {})
    assert config.center.state_dir == state.root
    assert file_facts(config, {}).state_dir == site.directory / "elsewhere"


def test_a_fleet_whose_file_is_gone_is_found(site: Site) -> None:
    state = site.start()
    site.file.unlink()
    found = file_of_fleet(None, {}, site.directory)
    assert found == site.file
    assert config_of_fleet(found, {}).center.state_dir == state.root


def test_an_override_of_the_state_directory_is_the_callers_word(site: Site) -> None:
    site.start()
    site.environ = {"operations_center_CENTER__STATE_DIR": "other"}
    assert site.root() == site.directory / "other"
    site.file.write_text("broken")
    with pytest.raises(ConfigError):
        config_of_fleet(site.file, site.environ)


def test_a_run_finds_its_fleet_without_a_pointer(site: Site) -> None:
    state = site.start()
    site.file.with_name(".operations_center.toml.fleet").unlink()
    site.file.write_text("broken")
    site.environ = {"OPERATIONS_CENTER_RUN_DIR": str(state.run("r1-abcdef"))}
    assert site.root() == state.root


def test_a_pointer_that_is_stale_or_planted_leads_nowhere(site: Site, tmp_path: Path, locks: ExitStack) -> None:
    other = Site(tmp_path / "other", locks)
    other.directory.mkdir()
    other.write()
    theirs = other.start()
    for planted in (theirs.root, tmp_path / "missing", Path("/etc")):
        write_pointer(site.file, planted, {})
        assert site.root() == site.directory / "state"


def test_a_pointer_to_a_directory_that_others_may_write_leads_nowhere(site: Site) -> None:
    state = site.start()
    site.write("elsewhere")
    state.root.chmod(0o777)
    assert site.root() == site.directory / "elsewhere"


def test_a_heartbeat_names_no_copy_outside_of_the_directory(site: Site) -> None:
    state = site.start()
    pulse = state.pulse(SUPERVISOR)
    name = next(state.configs.iterdir()).name
    (site.directory / "planted.toml").write_text(CONFIG.replace("goal", "planted"))
    pulse.write_text(pulse.read_text().replace(name, "../../planted.toml"))
    assert read_pulse(pulse) is None
    assert list(config_of_fleet(site.file, {}).roles) == ["goal"]


def test_a_watcher_that_lives_tells_more_than_a_supervisor_that_is_dead(site: Site, locks: ExitStack) -> None:
    state = site.start()
    locks.close()
    pulse = state.pulse(SUPERVISOR)
    pulse.write_text(pulse.read_text().replace(f'"pid":{os.getpid()}', '"pid":1'))
    site.write(text=CONFIG.replace("roles.goal", "roles.new"))
    version = Version(None, keep_copy(site.file, state))
    with closing(open_center(load_config(site.file, {}), version=version)) as center:
        center.heart("new").beat("ready")
    locks.callback(os.close, take_lock(state.watcher_lock("new"), "a watcher"))
    site.file.write_text("broken")
    assert list(config_of_fleet(site.file, {}).roles) == ["new"]


def test_a_role_is_removed_when_a_living_supervisor_runs_a_configuration_without_it(
    site: Site, locks: ExitStack
) -> None:
    site.start()
    config = load_config(site.file, {})
    assert not is_role_removed("goal", "", config, {})
    assert is_role_removed("gone", "", config, {})
    locks.close()
    assert not is_role_removed("gone", "", config, {})
