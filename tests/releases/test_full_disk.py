"""A disk that is full while a release is made: that is no fault of the commit, and nothing is left."""

import os

import pytest

from operations_center.errors import OperationsCenterError
from operations_center.releases.staging import BadRelease
from tests.process.test_full_disk import Disk
from tests.releases.clones import Clones

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")

SIZE_KIB = 8 * 1024
LARGE_KIB = 2048


@pytest.mark.parametrize("room_kib", [0, 16, 128, 1000, 2500, 3500])
def test_a_disk_that_is_full_makes_no_release_and_none_bad(clones: Clones, room_kib: int) -> None:
    # Like an installer it removes what it could not finish, so that there is room again when it has failed.
    install = f"head -c {LARGE_KIB * 1024} /dev/zero >installed || {{ rm installed; exit 1; }}"
    clones.configure(install=f"['sh', '-c', '{install}']")
    commit = clones.push({"large": "x" * LARGE_KIB * 1024})
    with Disk(clones.state).mounted(f"size={SIZE_KIB}k") as disk:
        with clones.center():
            pass
        for _ in range(2):
            disk.fill()
            leave_room(disk, room_kib)
            with pytest.raises(OperationsCenterError) as refused:
                clones.stage()
            assert not isinstance(refused.value, BadRelease)
            assert len(str(refused.value).splitlines()) == 1
            assert clones.on_disk() == set()
            disk.free()
            assert clones.known() == {}
        assert clones.stage().release.commit == commit
        assert clones.on_disk() == {commit}


def leave_room(disk: Disk, kib: int) -> None:
    ballast = disk.directory / "ballast"
    os.truncate(ballast, max(0, ballast.stat().st_size - kib * 1024))
