from pathlib import Path

import pytest

from operations_center.config import write_template
from tests.cli.command_line import CommandLine


@pytest.fixture
def empty(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A directory without anything in it."""
    root = tmp_path / "a fleet"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("OPERATIONS_CENTER_CONFIG", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return CommandLine(root, capsys)


@pytest.fixture
def line(empty: CommandLine) -> CommandLine:
    """A directory with the configuration that ``init`` writes."""
    write_template(empty.root)
    return empty
