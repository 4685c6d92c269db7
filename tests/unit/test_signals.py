"""What a signal tells of its sender."""

import os

import pytest

from operations_center.signals import SI_KERNEL, SI_TKILL, SI_USER, Sent

SI_QUEUE = -1
POLL_IN = 1


@pytest.mark.parametrize(
    ("code", "pid", "is_from_outside", "is_sender_known"),
    [
        (SI_KERNEL, 0, True, False),
        (SI_USER, 0, True, True),
        (SI_USER, 1234, False, True),
        (SI_TKILL, 1234, False, True),
        (SI_QUEUE, 0, False, False),
        (SI_QUEUE, 1, False, False),
        (POLL_IN, 0, False, False),
    ],
)
def test_a_sender_counts_only_where_the_kernel_names_it(
    code: int, pid: int, is_from_outside: bool, is_sender_known: bool
) -> None:
    sent = Sent(15, code, pid, os.getuid())
    assert (sent.is_from_outside, sent.is_sender_known) == (is_from_outside, is_sender_known)
