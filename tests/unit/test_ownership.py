"""Who else could have written a file."""

import os
import pwd
import struct
from pathlib import Path

import pytest

from operations_center.ownership import why_untrusted

NOBODY = pwd.getpwnam("nobody")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in a directory of our own, below one that everybody may write but nobody may tidy, as ``/tmp`` is."""
    shared, own = tmp_path / "shared", tmp_path / "shared" / "own"
    own.mkdir(parents=True)
    tmp_path.chmod(0o755)
    shared.chmod(0o1777)
    own.chmod(0o755)
    file = own / "operations_center.toml"
    file.touch(0o644)
    file.chmod(0o644)
    return file


def complaint(path: Path) -> str:
    problem = why_untrusted(path)
    assert problem is not None
    return problem


def test_a_file_of_ours_below_a_shared_directory_is_trusted(file: Path) -> None:
    assert why_untrusted(file) is None


def test_a_file_of_ours_directly_in_a_shared_directory_is_trusted(file: Path) -> None:
    own = file.parent.with_name("directly")
    own.touch(0o644)
    assert why_untrusted(own) is None


@AS_ROOT
def test_a_file_of_somebody_else_is_not_trusted(file: Path) -> None:
    os.chown(file, NOBODY.pw_uid, NOBODY.pw_gid)
    assert complaint(file) == "it belongs to user nobody, and this is user root"


@AS_ROOT
def test_a_directory_of_somebody_else_on_the_way_is_not_trusted(file: Path) -> None:
    os.chown(file.parent, NOBODY.pw_uid, NOBODY.pw_gid)
    assert complaint(file) == f"{file.parent}, which leads to it, belongs to user nobody, and this is user root"


@pytest.mark.parametrize("mode", [0o666, 0o646])
def test_a_file_that_others_may_write_is_not_trusted(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert complaint(file) == f"it may be written by others: its mode is {mode:04o}"


def test_a_directory_that_others_may_write_is_not_trusted(file: Path) -> None:
    file.parent.chmod(0o777)
    assert f"{file.parent}, which leads to it, may be written by others" in complaint(file)
    file.parent.chmod(0o755)
    file.parent.parent.chmod(0o777)
    assert f"{file.parent.parent}, which leads to it, may be written by others" in complaint(file)


@AS_ROOT
def test_a_file_that_a_group_may_write_is_trusted_only_if_the_group_is_its_owners_alone(file: Path) -> None:
    file.chmod(0o664)
    assert why_untrusted(file) is None
    os.chown(file, 0, NOBODY.pw_gid)
    assert "may be written by others" in complaint(file)


@AS_ROOT
def test_a_group_that_somebody_else_has_as_the_first_one_is_not_its_owners_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.chmod(0o664)
    second = pwd.struct_passwd((*NOBODY[:3], 0, *NOBODY[4:]))
    monkeypatch.setattr(pwd, "getpwall", lambda: [pwd.getpwuid(0), second])
    assert "may be written by others" in complaint(file)


def test_a_file_that_an_access_control_list_lets_others_write_is_not_trusted(file: Path) -> None:
    file.chmod(0o664)
    # Tag, permissions and id of: the owner, a user, the group, the mask, everybody.
    entries = [(1, 6, -1), (2, 6, NOBODY.pw_uid), (4, 4, -1), (16, 6, -1), (32, 4, -1)]
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, may, of & 0xFFFFFFFF) for tag, may, of in entries)
    try:
        os.setxattr(file, "system.posix_acl_access", access)
    except OSError:
        pytest.skip("this file system has no access control lists")
    assert "may be written by others" in complaint(file)


def test_a_second_name_of_a_file_of_ours_in_a_shared_directory_is_not_trusted(file: Path) -> None:
    planted = file.parent.with_name("planted")
    planted.hardlink_to(file)
    assert "it has another name elsewhere" in complaint(planted)
    assert why_untrusted(file) is None


@AS_ROOT
def test_a_link_is_judged_by_itself_and_by_what_it_leads_to(file: Path) -> None:
    theirs, link = file.with_name("theirs"), file.with_name("link")
    theirs.touch(0o644)
    os.chown(theirs, NOBODY.pw_uid, NOBODY.pw_gid)
    link.symlink_to("../own/theirs")
    assert "belongs to user nobody" in complaint(link)
    planted = file.parent.with_name("planted")
    planted.symlink_to(file)
    assert why_untrusted(planted) is None
    os.chown(planted, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
    assert f"{planted}, which leads to it, belongs to user nobody" in complaint(planted)


def test_links_in_a_circle_are_an_error(file: Path) -> None:
    circle = file.with_name("circle")
    circle.symlink_to(circle)
    with pytest.raises(OSError, match="levels of symbolic links"):
        why_untrusted(circle)
