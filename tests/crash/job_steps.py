"""What counts as a step of a process that speaks with providers: in its loop, and in its threads."""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.points import OPENED, effects


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def in_the_loop(frame: FrameType, event: str, argument: Any) -> str | None:
    """What the loop changes outside: ledger, board, files, locks. Threads are heard when they open files, too."""
    return effects(frame, event, argument) if _is_main_thread() else None


IN_A_THREAD = "in a thread:"
_ON_THE_WIRE = frozenset({"connect", "send", "recv"})


def in_requests(frame: FrameType, event: str, argument: Any) -> str | None:
    """What the threads that speak with the provider do: each call of a socket, and of a file that is downloaded."""
    if _is_main_thread() or event not in ("c_call", OPENED):
        return None
    if event == "c_call" and argument.__name__ in _ON_THE_WIRE:
        return f"{IN_A_THREAD} {frame.f_code.co_qualname}: {argument.__name__}"
    name = effects(frame, event, argument)
    return f"{IN_A_THREAD} {name}" if name is not None else None


def also_in_threads(body: Callable[[], object]) -> Callable[[], None]:
    """Threads that a body starts are observed as it is."""

    def observed() -> None:
        threading.setprofile(sys.getprofile())
        body()

    return observed


def after(qualified_name: str) -> Callable[[FrameType, str, Any], str | None]:
    """The return from one function."""

    def name(frame: FrameType, event: str, _argument: Any) -> str | None:
        return qualified_name if event == "return" and frame.f_code.co_qualname == qualified_name else None

    return name
