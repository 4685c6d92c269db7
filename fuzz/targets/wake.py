"""Whatever stands in the place of a wake-up FIFO: it is written to, opened, and drained."""

import hypothesis.strategies as st

from fuzz.plants import Plant, contents, plant, plants
from fuzz.sandbox import Sandbox
from operations_center.errors import OperationsCenterError
from operations_center.wakeups import WakeUp, wake_everybody


class PlantedWakeUp:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._directory = sandbox.inside / "wake"
        self._directory.mkdir(mode=0o700)

    @property
    def inputs(self) -> st.SearchStrategy[Plant]:
        return plants(contents())

    def attempt(self, value: Plant) -> None:
        path = self._directory / "goal"
        plant(value, path, self._sandbox)
        wake_everybody(self._directory)
        try:
            wake_up = WakeUp(self._directory, "goal")
        except (OSError, OperationsCenterError):
            return
        wake_everybody(self._directory)
        wake_up.drain()
        wake_up.close()

    def close(self) -> None:
        return
