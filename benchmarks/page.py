"""Makes docs/benchmarks.md of the results, so that no figure is typed by hand, and of explanations.md, which is."""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.figures import number

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "latest.json"
EXPLANATIONS = HERE / "explanations.md"
PAGE = HERE.parent / "docs" / "benchmarks.md"

_HEAD = """# Benchmarks

Made by `scripts/bench` (benchmarks/page.py) of benchmarks/results/latest.json; what stands under "Where the time goes"
is kept by hand in benchmarks/explanations.md. Each figure was measured beside its floor or peer in the same run.
Figures of another machine will differ; compare with what stands beside them.
"""


def main() -> None:
    PAGE.write_text(make_page(json.loads(RESULTS.read_text()), EXPLANATIONS.read_text()))


def write_json(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def make_page(results: dict[str, Any], explanations: str) -> str:
    """``explanations`` has a section ``## NAME`` for each figure that needs one."""
    told = _sections(explanations)
    machine = "".join(f"| {name} | {value} |\n" for name, value in results["machine"].items())
    parts = [_HEAD, _overview(results), f"## Measured on\n\n| | |\n|---|---|\n{machine}"]
    parts += [_figure(figure, told.get(figure["name"])) for figure in results["figures"]]
    return "\n".join(parts)


def _overview(results: dict[str, Any]) -> str:
    rows = [row for figure in results["figures"] for row in figure["rows"] if row["met"] is not None]
    missed = [row["what"] for row in rows if not row["met"]]
    said = f"{len(rows) - len(missed)} of {len(rows)} targets are met."
    return said + (f" Missed: {'; '.join(missed)}.\n" if missed else "\n")


def _figure(figure: dict[str, Any], explanation: str | None) -> str:
    table = "| | ours | target | beside it, in the same run |\n|---|---|---|---|\n"
    table += "".join(_row(row) for row in figure["rows"])
    text = f"## {figure['title']}\n\n{table}\n{figure['how']}\n\n(`benchmarks/{figure['name']}.py`)\n"
    return text + (f"\n**Where the time goes.** {explanation}\n" if explanation else "")


def _row(row: dict[str, Any]) -> str:
    target = ""
    if row["target"] is not None:
        sign = "≥" if row["at_least"] else "≤"
        said = f"{sign} {number(row['target'])}" + (f" ({row['target_is']})" if row["target_is"] else "")
        target = f"{said}: {'met' if row['met'] else '**missed**'}"
    beside = "; ".join(f"{name} {number(value)}" for name, value in row["beside"].items())
    return f"| {row['what']} | {number(row['ours'])} {row['unit']}{_spread(row['spread'])} | {target} | {beside} |\n"


def _spread(spread: dict[str, float]) -> str:
    if not spread:
        return ""
    shown = ", ".join(f"{name} {number(spread[name])}" for name in ("p50", "p95", "p99", "max"))
    return f" ({spread['n']} times: {shown})"


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


if __name__ == "__main__":
    main()
