"""Stands where an AI coding agent would: reads its task and becomes the program that the task's body names."""

import json
import os
import sys
from pathlib import Path

task = json.loads(Path(os.environ["OPERATIONS_CENTER_TASK_FILE"]).read_text())
program, *arguments = task["body"].split()
path = Path(__file__).with_name(f"{program}.py")
os.execv(sys.executable, [sys.executable, str(path), *arguments])
