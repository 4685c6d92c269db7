"""Judge whether somebody else could have written a file: another user, or a program of theirs.

A file is believed when it and everything on the way to it belong to this user or to root, and nobody else may write
there. A directory with the sticky bit, such as ``/tmp``, may be passed: nobody can exchange what is ours in it. But
anybody can put something into it, so what lies directly in it has to be ours, and no second name of a file of ours.
Links are followed, and judged alike.
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

MOST_LINKS = 40
"""As many as the kernel follows (path_resolution(7))."""

ROOT = 0
EVERY_USER = 2**32 - 1
"""As many as a user namespace has that maps every user."""


class _Step(NamedTuple):
    path: str
    facts: os.stat_result


def why_untrusted(path: Path) -> str | None:
    """Say who else could have written a file, in words for ``cannot use FILE: …``; None where nobody could.

    Raises OSError where that cannot be seen.
    """
    user, is_shared = os.geteuid(), False
    *above, last = _steps(path)
    for step in above:
        if problem := _problem(step, user):
            return f"{step.path}, which leads to it, {problem}"
        is_shared = not _is_link(step) and _may_others_write(step)
    if is_shared and last.facts.st_uid != user:
        return f"it belongs to {_name_of(last.facts.st_uid)}, and others may write {os.path.dirname(last.path)}"
    if is_shared and stat.S_ISREG(last.facts.st_mode) and last.facts.st_nlink > 1:
        return f"it has another name elsewhere, and others may write {os.path.dirname(last.path)}"
    problem = _problem(last, user)
    return f"it {problem}" if problem else None


def _problem(step: _Step, user: int) -> str | None:
    facts = step.facts
    if facts.st_uid not in (user, ROOT, _unmapped_user()):
        return f"belongs to {_name_of(facts.st_uid)}, and this is {_name_of(user)}"
    is_sticky = stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX
    if not _is_link(step) and not is_sticky and _may_others_write(step):
        return f"may be written by others: its mode is {stat.S_IMODE(facts.st_mode):04o}"
    return None


@cache
def _unmapped_user() -> int | None:
    """Return who owns what belongs to users that this user namespace does not map: nobody in here can be one of them.

    None where every user is mapped, and a file of that number belongs to an ordinary user.
    """
    try:
        maps = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
        if sum(int(count) for _, _, count in maps) >= EVERY_USER:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return None


def _steps(path: Path) -> Iterator[_Step]:
    """Yield directories and links on the way to a file, in the order in which the kernel meets them, then the file."""
    here, links = "/", 0
    left = _parts_of(os.path.abspath(path))
    yield _Step(here, os.lstat(here))
    while left:
        name = left.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        step = _Step(os.path.join(here, name), os.lstat(os.path.join(here, name)))
        yield step
        if not _is_link(step):
            here = step.path
            continue
        links += 1
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = os.readlink(step.path)
        here = "/" if target.startswith("/") else here
        left += _parts_of(target)


def _parts_of(path: str) -> list[str]:
    """Return the names in a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _is_link(step: _Step) -> bool:
    return stat.S_ISLNK(step.facts.st_mode)


def _may_others_write(step: _Step) -> bool:
    facts = step.facts
    if facts.st_mode & stat.S_IWOTH:
        return True
    if not facts.st_mode & stat.S_IWGRP:
        return False
    # With an access control list these bits are its mask: what the users and groups in it have at most (acl(5)).
    return _has_list(step.path) or not _is_private_group(facts.st_gid, facts.st_uid)


def _has_list(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.EOPNOTSUPP)


def _is_private_group(gid: int, uid: int) -> bool:
    """Return whether a group is its owner's alone, as many systems make one for each user."""
    try:
        group, owner = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    is_named_so = group.gr_name == owner.pw_name and owner.pw_gid == gid
    return is_named_so and set(group.gr_mem) <= {owner.pw_name} and _users_whose_group_is(gid) <= {owner.pw_name}


def _users_whose_group_is(gid: int) -> set[str]:
    """Return who has it as the first group, for whom no list of members names."""
    return {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid}


def _name_of(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
