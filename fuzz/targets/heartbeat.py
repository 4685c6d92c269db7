"""Whatever stands in the place of a heartbeat: it is read, judged, shown, and written over."""

import hypothesis.strategies as st

from fuzz.plants import PID, TICKS, Plant, contents, plant, plants
from fuzz.sandbox import Sandbox
from fuzz.targets.center import new_center
from operations_center.clock import SystemClock
from operations_center.heart import Heart
from operations_center.pulse import read_pulse
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from operations_center.views.status import describe, read_members
from operations_center.watchdog import is_stalled

NAMES = (SUPERVISOR, WATCHDOG, "goal", "unknown")


class PlantedHeartbeat:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._center = new_center(sandbox)

    @property
    def inputs(self) -> st.SearchStrategy[tuple[str, Plant]]:
        host = self._center.host
        right = (
            f'{{"pid":{PID.decode()},"start_ticks":{TICKS.decode()},"boot_id":"{host.boot_id}","state":"up",'
            f'"started_at":1,"heartbeat_at":1,"heartbeat_mono":1,"details":{{"children":[]}}}}'
        )
        odd = right.replace('"children":[]', '"children":[{"name":1,"pid":[]},7,null]')
        huge = right.replace('"started_at":1', '"started_at":9223372036854775807')
        strategy = plants(contents(right.encode(), odd.encode(), huge.encode()))
        return st.tuples(st.sampled_from(NAMES), strategy)

    def attempt(self, value: tuple[str, Plant]) -> None:
        name, thing = value
        path = self._center.state.pulse(name)
        plant(thing, path, self._sandbox)
        now = SystemClock().now()
        pulse = read_pulse(path)
        if pulse is not None:
            is_stalled(pulse, now, 0, self._center.host.boot_id, 1)
        describe(read_members(self._center.config))
        heart = Heart(path, self._center.clock, self._center.host, self._center.me)
        heart.beat("up")

    def close(self) -> None:
        self._center.close()
