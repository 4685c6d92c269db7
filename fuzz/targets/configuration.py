"""Whatever stands in a configuration: it is a configuration, or each of its mistakes is one line."""

import hypothesis.strategies as st

from fuzz.plants import contents
from fuzz.sandbox import Sandbox
from operations_center.config import load_config
from operations_center.errors import ConfigError
from operations_center.text import printable
from operations_center.views.status import describe, read_members

LINES = (
    *(
        "[center]",
        "[roles.goal]",
        "[backends.agent]",
        "[backends.video]",
        "[board]",
        "[watchdog]",
        "[code_pull]",
        "[web]",
    ),
    *('kind = "command"', 'kind = "http_job"', 'argv = ["true"]', 'backend = "agent"', "max_concurrent = 1"),
    *('state_dir = "/proc"', 'state_dir = "\\u0000"', 'keep = "0s"', "keep = 1", 'keep = "99999999d"'),
    *('argv = ["{prompt}"]', 'argv = ["\\u001b]0;x\\u0007"]', 'env = ["A=SECRET"]', "env = [1]", "task_kinds = []"),
    *('on_success = { follow_up = "goal" }', "retry_backoff = { factor = -1 }", "concurrency = 99999999999999999999"),
    *('submit = { url = "https://u:SECRET@h/" }', 'job_id = "["', 'repository = "\\n"', 'remote = "ext::sh -c id"'),
    *("x = " + "[" * 2000 + "]" * 2000, "x = 1e999", "x = nan", "x = 1979-05-27", '"\\u001b" = 1', "a.b.c = 1"),
)


class SpoiledConfiguration:
    def __init__(self, sandbox: Sandbox) -> None:
        self._file = sandbox.inside / "operations_center.toml"

    @property
    def inputs(self) -> st.SearchStrategy[bytes]:
        lines = st.lists(st.sampled_from(LINES), max_size=12).map(lambda lines: "\n".join(lines).encode())
        return st.one_of(lines, lines.flatmap(contents))

    def attempt(self, value: bytes) -> None:
        self._file.write_bytes(value)
        try:
            config = load_config(self._file, {})
        except ConfigError as error:
            for line in error.lines:
                assert line.startswith("cannot ") and printable(line) == line, line
                assert "SECRET" not in line, line
            return
        describe(read_members(config))

    def close(self) -> None:
        return
