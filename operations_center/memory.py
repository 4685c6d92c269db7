"""The machine's memory."""

from pathlib import Path

from operations_center.errors import OperationsCenterError

MEMINFO = Path("/proc/meminfo")


def available_memory() -> int:
    """Bytes that new programs could have without swapping, as the kernel estimates (proc_meminfo(5): MemAvailable).

    Raises OperationsCenterError, OSError.
    """
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OperationsCenterError(
        f"cannot tell how much memory is available: {MEMINFO} does not say; leave min_available_memory unset"
    )
