"""Read Python's library, write an outline of what its modules offer, and ask for the work that follows from it."""

import ast
import sysconfig
from pathlib import Path

from witness import result, witnessed


def outline(path: Path) -> tuple[str, int]:
    tree = ast.parse(path.read_text(errors="replace"))
    public = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    without = [node.name for node in public if ast.get_docstring(node) is None]
    lines = [f"## {path.stem}", f"{len(public)} public names, {len(without)} of them without a docstring"]
    return "\n".join([*lines, *(f"- {name}" for name in without[:20]), ""]), len(public)


def is_python(path: Path) -> bool:
    try:
        compile(path.read_bytes(), str(path), "exec", ast.PyCF_ONLY_AST)
    except (SyntaxError, ValueError):
        return False
    return True


def write_spec(at_most: str) -> int:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*/*.py"))[: int(at_most)]
    # Python's own tests hold files that are meant to be wrong.
    sections = [outline(path) for path in paths if is_python(path)]
    spec = Path("spec.md")
    spec.write_text("\n".join(text for text, _ in sections))
    result(
        f"{sum(count for _, count in sections):,} public names of {len(sections)} modules outlined",
        artifacts=[str(spec.absolute())],
        follow_ups=[
            {"title": "Index what the outline names", "kind": "goal", "body": "index_words a*.py 120"},
            {"title": "Test the outline's examples", "kind": "test", "body": "10"},
        ],
    )
    return 0


witnessed(write_spec)
