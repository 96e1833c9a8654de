"""What every script here shares: nearfar's own measurements, a script in a fresh process, and where results go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from nearfar.benchmark.measure import interleaved, metadata, peak_of

__all__ = ["in_fresh_process", "interleaved", "metadata", "peak_of", "write"]

RESULTS = Path(__file__).parent / "results"


def in_fresh_process(script: str, *arguments: str) -> Any:
    """What a script prints as JSON on its last line, run by a new interpreter."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{script} {' '.join(arguments)}: expected exit 0, received {done.returncode}\n{done.stderr}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def write(name: str, result: dict[str, Any]) -> Path:
    """Writes results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
