"""Events of the supervisor, kept until the ledger takes them: one that is busy or full keeps nobody from starting."""

import logging
from typing import Any

from operations_center.errors import OperationsCenterError
from operations_center.wiring import Center

START_WITHIN_S = 0.5
"""As long as whatever the supervisor writes may keep the fleet from starting."""

AGAIN_AFTER_MS = 2_000
KEPT = 1_000
"""As many of the last ones are offered again."""

LAST_WITHIN_S = 3.0
"""For what would be lost with the image that knows it."""

_log = logging.getLogger(__name__)


class Notes:
    def __init__(self, center: Center) -> None:
        self._center = center
        self._untold: list[tuple[str, dict[str, Any]]] = []
        self._write_at = 0

    def add(self, kind: str, data: dict[str, Any]) -> None:
        """The log explains every moment; it is written when whoever is due has been started."""
        self._untold.append((kind, {"supervisor": self._center.me.pid, **data}))

    def write_if_due(self) -> None:
        if self._now() >= self._write_at:
            self.write()

    def write(self, within_s: float = START_WITHIN_S) -> None:
        if not self._untold:
            return
        try:
            with self._center.ledger.within(within_s), self._center.ledger.transaction():
                for kind, data in self._untold:
                    self._center.ledger.note(kind, data)
        except OperationsCenterError as error:
            _log.warning("cannot note %d events: %s", len(self._untold), error)
            self._write_at = self._now() + AGAIN_AFTER_MS
            del self._untold[:-KEPT]
        else:
            self._untold.clear()

    def _now(self) -> int:
        return self._center.clock.now().monotonic
