"""What a forked process shares with its parent: every page that neither of the two has written to since."""

import ctypes
import gc

_SIZES = [2**power for power in range(16, 4, -1)]
"""That holes are filled with, in bytes. glibc gives no less than 32, eight of which it needs itself."""

_ENOUGH = 4 * 1024 * 1024
"""Our imports leave holes of about 1 MiB."""


def prepare_to_share() -> None:
    """To be called before a fork, when everything is imported: the child will copy fewer pages."""
    # A garbage collection of the child would write to all objects. None now either: it makes holes.
    gc.freeze()
    _fill_holes()


def _fill_holes() -> None:
    """Leave no free memory between what is there, so that what the child allocates lies together, on pages of its own.

    SQLite needs 0.2 MiB in many small pieces. Scattered over the holes that imports have left they are a copy of 1 MiB.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_size_t, (ctypes.c_size_t,)
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_size_t, (ctypes.c_ssize_t,)
    end_of_heap = libc.sbrk(0)
    for size in _SIZES:
        for _ in range(_ENOUGH // size):
            # What comes from beyond the end was no hole.
            if libc.malloc(size - 8) >= end_of_heap:
                break
