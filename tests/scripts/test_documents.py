"""What the documents say of rows, keys and commands is what the program has."""

import re
from pathlib import Path

import pytest

from operations_center.cli import COMMANDS
from operations_center.config import CommandSettings, HttpJobSettings
from operations_center.config.backends import PRESETS
from operations_center.config.placeholders import PLACEHOLDERS
from operations_center.config.sections import SECTIONS, Backend, Section
from operations_center.config.structure import keys_of, nested_section
from operations_center.in_flight_reconcile import LOCK_WITHIN_S, STARTUP_BUDGET_S
from operations_center.in_flight_reconcile.orphans import COMMAND_RUN, PROVIDER_RUN, SETTLING_RUN
from operations_center.store.sqlite import WRITE_WITHIN_S
from operations_center.supervisor.notes import START_WITHIN_S
from operations_center.watcher import TAKE_OVER_WITHIN_S

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


def test_the_verdict_table_has_the_rows_of_the_code() -> None:
    page = (ROOT / "docs/reconciliation.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*?\| `(\w+)`(?:, `(\w+)`)?", page, re.MULTILINE)
    told = [(int(row), verdict, proof or None) for row, verdict, proof in rows]
    tables = (*SETTLING_RUN, *PROVIDER_RUN, *COMMAND_RUN)
    assert told == [(rule.row, str(rule.verdict), rule.proof) for rule in tables]


@pytest.mark.parametrize(
    ("section", "kind"),
    [*SECTIONS.items(), ("backends", CommandSettings)],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_every_key_is_documented(section: str, kind: type[Section]) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    part = re.split(r"^## ", page[page.index(f"`[{section}") :], flags=re.MULTILINE)[0]
    assert {key for key in keys_of(kind) if f"`{key}`" not in part} == set()


def test_every_key_of_a_provider_is_documented() -> None:
    page = (ROOT / "docs/providers.md").read_text()
    keys = set()
    for key, field in keys_of(HttpJobSettings).items():
        nested = nested_section(field)
        keys |= {f"{key}.{inner}" for inner in keys_of(nested)} if nested else {key}
    keys -= set(keys_of(Backend))
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_every_preset_is_documented_and_none_else() -> None:
    page = (ROOT / "docs/providers.md").read_text()
    told = re.findall(r"^\| `([a-z-]+)` \|.*tried live", page, re.MULTILINE)
    assert sorted(told) == sorted(path.stem for path in PRESETS.glob("*.toml"))


def test_every_placeholder_is_documented() -> None:
    page = (ROOT / "docs/providers.md").read_text()
    assert {name for name in PLACEHOLDERS if f"`{{{name}}}`" not in page} == set()


def test_the_readme_names_every_command() -> None:
    page = (ROOT / "README.md").read_text()
    assert {command for command in COMMANDS if f"`{command}" not in page} == set()


@pytest.mark.parametrize("page", [path.relative_to(ROOT) for path in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("docs/reconciliation.md", f"`budget` ({STARTUP_BUDGET_S:g} s were not enough"),
        ("ARCHITECTURE.md", f"({LOCK_WITHIN_S:g} s to get it, {STARTUP_BUDGET_S:g} s for all"),
        (
            "ARCHITECTURE.md",
            f"{STARTUP_BUDGET_S:g} s for its reconciliation, {TAKE_OVER_WITHIN_S:g} s to take over its",
        ),
        ("ARCHITECTURE.md", f"gives a note or the end of a drain {START_WITHIN_S:g} s each"),
        ("ARCHITECTURE.md", f"A writer waits {WRITE_WITHIN_S:g} s for the others"),
    ],
)
def test_the_pages_tell_the_budgets_of_the_code(page: str, text: str) -> None:
    assert text in " ".join((ROOT / page).read_text().split())
