"""Build an inverted index over Python's own library, write it, read it again and ask it a question."""

import gzip
import json
import re
import sysconfig
from collections import defaultdict
from pathlib import Path

from witness import result, witnessed

WORD = re.compile(r"[A-Za-z_]{3,}")


def build(paths: list[Path]) -> dict[str, list[list[int]]]:
    index: dict[str, list[list[int]]] = defaultdict(list)
    for number, path in enumerate(paths):
        for position, match in enumerate(WORD.finditer(path.read_text(errors="replace"))):
            index[match[0].lower()].append([number, position])
    return index


def index_words(pattern: str, at_most: str) -> int:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(library.rglob(pattern))[: int(at_most)]
    file = Path("index.json.gz")
    with gzip.open(file, "wt", compresslevel=5) as writer:
        json.dump(build(paths), writer)
    with gzip.open(file, "rt") as reader:
        index = json.load(reader)
    found = {paths[number].name for number, _ in index["import"]}
    result(f"{len(index):,} words of {len(paths)} files; {len(found)} of them say “import”")
    return 0


witnessed(index_words)
