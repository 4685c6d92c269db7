"""Room that is kept for the moment in which there is none."""

from pathlib import Path

import pytest

from operations_center.errors import LedgerUnwritable
from operations_center.store import reserve as reserve_module
from operations_center.store.reserve import LARGEST, PARTS, Reserve


def test_the_reserve_has_real_blocks_and_is_made_once(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    assert reserve.fill()
    parts = sorted((tmp_path / "reserve").iterdir())
    assert len(parts) == PARTS
    assert 0 < sum(part.stat().st_blocks * 512 for part in parts) <= LARGEST
    made = [part.stat().st_mtime_ns for part in parts]
    assert reserve.fill()
    assert [part.stat().st_mtime_ns for part in parts] == made


def test_the_reserve_is_given_back_part_by_part_until_a_write_works(tmp_path: Path) -> None:
    reserve, tries = Reserve(tmp_path / "reserve"), 0
    reserve.fill()

    def write() -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise LedgerUnwritable("ledger.db", "the disk is full")
        return "written"

    assert reserve.spend_on(write) == "written"
    assert len(list((tmp_path / "reserve").iterdir())) == PARTS - 3
    assert reserve.fill()
    assert len(list((tmp_path / "reserve").iterdir())) == PARTS


def test_a_write_that_never_works_raises_when_the_reserve_is_spent(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.fill()

    def write() -> None:
        raise LedgerUnwritable("ledger.db", "the disk is full")

    with pytest.raises(LedgerUnwritable):
        reserve.spend_on(write)
    assert list((tmp_path / "reserve").iterdir()) == []


def test_no_reserve_is_made_where_there_is_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve_module, "LEAVES", 1 << 40)
    assert not Reserve(tmp_path / "reserve").fill()
    assert list((tmp_path / "reserve").iterdir()) == []


def test_a_reserve_that_is_a_link_leads_to_no_removal_elsewhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "part-0").write_text("mine")
    (tmp_path / "reserve").symlink_to(precious)

    def write() -> None:
        raise LedgerUnwritable("ledger.db", "the disk is full")

    with pytest.raises(LedgerUnwritable):
        Reserve(tmp_path / "reserve").spend_on(write)
    with pytest.raises(OSError, match="link"):
        Reserve(tmp_path / "reserve").fill()
    assert (precious / "part-0").read_text() == "mine"
