"""What the scripts here share: a compilation in a process of its own, whose figures come back as JSON."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def figures(label: str, arguments: Callable[[Path], list[str]]) -> dict[str, Any]:
    """Runs Python with `arguments`, given the file to write, and reads that file; exits with the output if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, *arguments(path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not path.exists():
            sys.exit(f"{label}: {done.stdout}{done.stderr}")
        found: dict[str, Any] = json.loads(path.read_text())
    return found
