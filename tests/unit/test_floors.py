"""Imports go downwards only, and rooms on one floor do not import each other."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "operations_center"

FLOORS = (
    "__main__",
    "cli",
    "supervisor",
    "watcher watchdog stopping views",
    "care",
    "wiring dispatch polling senders running",
    "in_flight_reconcile",
    "settlement",
    "outcomes releases",
    "ledger boards backends providers",
    "store config presentation fleet heart forking memory",
    "keeper model admission locks state_directory pulse waiting",
    "pidfds pointer",
    "errors clock units identity ids wakeups logs sharing signals titles places bounds environment",
    "files",
    "text patient_stream ownership",
)
"""From the top to the ground; a word is a module of the package, or a package in it."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which floor they go to"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, *rooms = name.split(".")
            if package == PACKAGE.name and rooms and rooms[0] != "__version__":
                yield rooms[0]


def test_every_room_is_on_a_floor() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(FLOOR_OF)


def test_imports_go_downwards_only() -> None:
    upwards = {
        f"{room_of(path)} imports {room}"
        for path in PACKAGE.rglob("*.py")
        for room in imported_rooms(path)
        if room != room_of(path) and FLOOR_OF[room] <= FLOOR_OF.get(room_of(path), len(FLOORS))
    }
    assert not upwards


def test_the_architecture_page_shows_these_floors() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    block = re.search(r"## The floors.*?```\n(.*?)```", page, re.DOTALL)
    assert block is not None
    shown = [re.split(r"\s{2,}", line.strip())[0] for line in block[1].splitlines() if line.strip()]
    assert tuple(shown) == FLOORS


def test_a_watcher_of_programs_imports_nothing_that_only_providers_need() -> None:
    heavy = {"httpx", "jmespath", "hashlib", "ssl", "asyncio", "concurrent.futures"}
    program = f"import operations_center.watcher, sys; print({heavy} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "set()"
