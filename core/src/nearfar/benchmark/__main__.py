"""One job in a process of its own: `python -m nearfar.benchmark JOB` prints its figures as JSON on the last line."""

from __future__ import annotations

import json
import sys

from nearfar.benchmark.subjects import do

if __name__ == "__main__":
    print(json.dumps(do(json.loads(sys.argv[1]))))
