"""`nearfar benchmark objectives` with all peers, two threads, and its figures where the documentation reads them.

    python benchmarks/objectives.py                  all cases, written to results/objectives.json
    python benchmarks/objectives.py --rounds 3       a shorter look
    python benchmarks/objectives.py --no-write       print only

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse

from common import write

from nearfar.benchmark.cases import PEERS
from nearfar.benchmark.run import run
from nearfar.benchmark.show import show

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0, help="0: a number for each case")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    absent = [peer.install for peer in PEERS.values() if not peer.installed()]
    if absent:
        raise SystemExit(f"peers: expected all of them, missing are those of: {'; '.join(absent)}")
    result = run(rounds=options.rounds, threads=THREADS, say=print)
    show(result)
    if any("error" in case for case in result["cases"]):
        raise SystemExit("a case failed, so nothing was written")
    if not options.no_write:
        print(write("objectives", result))


if __name__ == "__main__":
    main()
