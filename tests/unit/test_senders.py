"""Who may stop a fleet by a signal."""

import pytest

from operations_center.senders import Facts, standing_of
from operations_center.signals import Standing


@pytest.mark.parametrize(
    ("facts", "standing"),
    [
        (Facts(is_from_outside=True), Standing.OWNER),
        (Facts(is_kin=True, is_alive=True), Standing.OWNER),
        (Facts(takes_fleet_down=True, is_alive=True), Standing.OWNER),
        (Facts(takes_fleet_down=True, is_alive=True, run_id="r1-a"), Standing.RUN),
        (Facts(is_alive=True, run_id="r1-a"), Standing.RUN),
        (Facts(run_id="r1-a", may_be_of_a_run=True), Standing.RUN),
        (Facts(is_alive=True, may_be_of_a_run=True), Standing.STRANGER),
        (Facts(is_of_another_user=True, may_be_of_a_run=True), Standing.STRANGER),
        (Facts(may_be_of_a_run=True), Standing.UNKNOWN),
        (Facts(), Standing.STRANGER),
    ],
)
def test_a_sender_is_judged_by_what_is_known_of_it(facts: Facts, standing: Standing) -> None:
    assert standing_of(facts) is standing
