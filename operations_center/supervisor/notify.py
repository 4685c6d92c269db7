"""sd_notify(3): tell systemd how the service does, if it is systemd that started us."""

import os
import socket


def notify(*lines: str) -> bool:
    """E.g. ``notify("READY=1", "STATUS=4 watchers")``; nothing happens without ``$NOTIFY_SOCKET``.

    False where it could not be told now, because whoever reads there takes nothing: nobody waits for that.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    # A leading @ stands for the NUL byte of an abstract socket.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        ) as connection:
            connection.sendto("\n".join(lines).encode(), target)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def watchdog_interval_ms() -> int | None:
    """How often systemd wants to hear ``WATCHDOG=1``: half of what it allows (sd_watchdog_enabled(3))."""
    limit, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not limit or not limit.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(limit) // 2000
