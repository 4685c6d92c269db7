"""A writer that is stopped while it changes what SQLite's readers look at first."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.races.test_admission import Child, admit, opened

# The header of the log's index stands there twice (sqlite.org/walformat.html, 2.1); a writer changes one copy after
# the other. A process of its own: to close the file would drop the locks of whoever has it open.
SPOIL = """
import sys
with open(sys.argv[1], "r+b") as index:
    index.seek(48)
    index.write(bytes(48))
"""


def write_half_a_header_and_stop(directory: Path) -> None:
    with opened(directory) as ledger, ledger.transaction():
        subprocess.run([sys.executable, "-c", SPOIL, str(directory / "ledger.db-shm")], check=True)
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_writer_that_is_stopped_between_the_copies_of_a_header_is_ended_by_those_who_read(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        assert admit(ledger, "t1") is not None
        writer = Child(partial(write_half_a_header_and_stop, tmp_path))
        writer.start()
        writer.wait_until_stopped()

        assert [run.task_id for run in ledger.open_runs()] == ["t1"]

        assert writer.end_signal() == signal.SIGKILL
        assert admit(ledger, "t2") is not None
        assert ledger.verify() == []


def test_a_ledger_can_be_opened_while_a_writer_is_stopped_between_the_copies_of_a_header(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        assert admit(ledger, "t1") is not None
    writer = Child(partial(write_half_a_header_and_stop, tmp_path))
    writer.start()
    writer.wait_until_stopped()

    with opened(tmp_path) as ledger:
        assert [run.task_id for run in ledger.open_runs()] == ["t1"]

    assert writer.end_signal() == signal.SIGKILL
