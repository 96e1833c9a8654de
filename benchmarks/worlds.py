"""Scenes of a world a second, and pictures read a second, on one thread.

    python benchmarks/worlds.py                     into results/worlds.json
    python benchmarks/worlds.py --rounds 1 --no-write

A scene is picture, boxes, masks, depth, saliency, scene graph and one short caption, up to four things; processor time
of this process, so that others on the machine disturb less. Agreement of what is read with what was drawn is measured
on 200 fresh scenes a line (object F1: shape, colour, size and a box of IoU 0.5).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import metadata, write

from nearfar.worlds import Factors, Render, Scenes, Style, agreement, read

BATCH = 256
LINES = {
    "64 px": Scenes(),
    "32 px": Scenes(render=Render(size=32)),
    "turned": Scenes(Factors(turn=(-180, 180))),
    "contrast 0.5 to 1": Scenes(Factors(contrast=(0.5, 1.0))),
    "blur 0.5": Scenes(render=Render(style=Style(blur=0.5))),
    "blur 1": Scenes(render=Render(style=Style(blur=1.0))),
    "blur 1.5": Scenes(render=Render(style=Style(blur=1.5))),
    "noise 0.05": Scenes(render=Render(style=Style(noise=0.05))),
    "noise 0.1": Scenes(render=Render(style=Style(noise=0.1))),
    "noise 0.2": Scenes(render=Render(style=Style(noise=0.2))),
    **{
        f"{weather} {strength}": Scenes(render=Render(style=Style(weather=weather, strength=strength)))
        for weather in ("fog", "rain", "snow", "shadow", "night")
        for strength in (0.3, 0.6)
    },
}


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median processor time of a call, after one that is not counted."""
    times = []
    for turn in range(rounds + 1):
        start = time.process_time()
        call()
        if turn:
            times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scenes", type=int, default=200, help="scenes a line of the table of agreement")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawn: dict[str, int] = {}
    for size in (32, 64, 128):
        world = Scenes(render=Render(size=size))
        drawn[f"{size} px"] = round(BATCH / seconds(lambda world=world: world.sample(BATCH), options.rounds))
        print(f"{size:4d} px: {drawn[f'{size} px']} scenes a second", flush=True)
    cases: dict[str, dict[str, float]] = {"scenes a second": dict(drawn)}
    for name, world in LINES.items():
        batch = world.sample(options.scenes, seed=9)
        start = time.process_time()
        found = [read(image, world) for image in batch["image"]]
        rate = options.scenes / (time.process_time() - start)
        score = agreement(found, world.scenes(batch))
        line = {**dataclasses.asdict(score), "read a second": rate}
        for measure, value in line.items():
            cases.setdefault(measure, {})[name] = round(value, 3 if measure != "read a second" else 1)
        print(f"{name:20s} {' '.join(f'{key} {value:.3f}' for key, value in line.items())}", flush=True)
    result = {"metadata": metadata(), "settings": {"scenes": options.scenes, "batch": BATCH}, "cases": cases}
    if not options.no_write:
        print(write("worlds", result))


if __name__ == "__main__":
    main()
