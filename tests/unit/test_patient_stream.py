"""Output whose reader may not read."""

import os
from collections.abc import Iterator

import pytest

from operations_center.patient_stream import KEPT_BYTES, PatientStream

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for descriptor in (read_end, write_end):
        try:
            os.close(descriptor)
        except OSError:
            pass


def read(descriptor: int, until: bytes) -> bytes:
    said = b""
    while until not in said:
        said += os.read(descriptor, 65536)
    return said


def test_what_nobody_reads_is_bounded_and_the_loss_is_told_in_its_place(pipe: Pipe) -> None:
    stream, line = PatientStream(pipe[1]), "x" * 999 + "\n"
    # More than it keeps and the pipe takes: were one of them to wait, this would not end.
    for _ in range(2 * KEPT_BYTES // len(line)):
        stream.write(line)
    said = read(pipe[0], b"were lost here")
    assert said.count(b"x\n") >= KEPT_BYTES // len(line)
    stream.write("after\n")
    assert read(pipe[0], b"after\n").endswith(b"after\n")


def test_a_reader_that_is_gone_hurts_nobody(pipe: Pipe) -> None:
    stream = PatientStream(pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        stream.write("nobody reads this\n")
    stream.drain(60)


def test_what_is_written_last_is_waited_for(pipe: Pipe) -> None:
    stream = PatientStream(pipe[1])
    stream.write("last words\n")
    stream.drain(60)
    os.set_blocking(pipe[0], False)
    assert os.read(pipe[0], 100) == b"last words\n"
