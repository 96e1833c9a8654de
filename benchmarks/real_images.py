"""SimCLR from the command line on real images: does the nearest-neighbour score improve over the untrained encoder?

    python benchmarks/real_images.py fashion-mnist FOLDER_OF_IDX_FILES
    python benchmarks/real_images.py photographs CAMVID_FOLDER

Fashion-MNIST is 70,000 clothes of 28 pixels. The photographs are patches of CamVid's street scenes, cut here into a
folder with one subfolder a class (the class that covers most of the patch), so that `--data.root` reads it as it would
read anybody's folder; patches of the frames in val/ are the test split. Results go to results/real_images.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from PIL import Image

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
SIDE, SHARE = 40, 0.7
RESULTS = Path(__file__).parent / "results" / "real_images.json"


def cut(camvid: Path, out: Path) -> dict[str, int]:
    """Patches of SIDE pixels of which at least SHARE belong to one class; classes with fewer than 20 are left out."""
    counts = {}
    for split, name in (("train", "train"), ("val", "test")):
        patches: dict[str, list[tuple[str, Image.Image]]] = {}
        for image_path in sorted((camvid / split / "images").glob("*.jpg")):
            image = Image.open(image_path).convert("RGB")
            labels = np.asarray(Image.open(camvid / split / "labels" / f"{image_path.stem}.png"))
            for top in range(0, labels.shape[0] - SIDE + 1, SIDE):
                for left in range(0, labels.shape[1] - SIDE + 1, SIDE):
                    shares = np.bincount(labels[top : top + SIDE, left : left + SIDE].ravel(), minlength=12) / SIDE**2
                    kind = int(shares[:11].argmax())
                    if shares[kind] >= SHARE:
                        patch = image.crop((left, top, left + SIDE, top + SIDE))
                        patches.setdefault(CLASSES[kind], []).append((f"{image_path.stem}-{top}-{left}", patch))
        counts[name] = patches
    kept = [c for c in CLASSES if min(len(counts[s].get(c, [])) for s in counts) >= 20]
    for name, patches in counts.items():
        for kind in kept:
            (out / name / kind).mkdir(parents=True)
            for stem, patch in patches[kind]:
                patch.save(out / name / kind / f"{stem}.png")
    return {f"{name}/{kind}": len(counts[name][kind]) for name in counts for kind in kept}


def train(flags: list[str], output: Path) -> tuple[dict, float]:
    """Runs the command as a user would; scores before and after, and wall seconds."""
    command = [
        sys.executable,
        "-m",
        "nearfar.cli",
        "images",
        "train",
        "simclr",
        *flags,
        "--trainer.output",
        str(output),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return json.loads((output / "scores.json").read_text()), time.perf_counter() - start


def main(which: str, folder: Path) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        if which == "photographs":
            root = Path(temporary) / "patches"
            counts = cut(folder, root)
            flags = ["--data.root", str(root), "--trainer.epochs", "20", "--data.image-size", "40"]
            data = {"source": f"CamVid patches of {SIDE} px", "images": counts}
        else:
            flags = ["--data.source", "fashion-mnist", "--data.root", str(folder), "--trainer.epochs", "3"]
            data = {"source": "Fashion-MNIST", "images": {"train": 60_000, "test": 10_000}}
        scores, seconds = train([*flags, "--trainer.evaluate-every", "0"], Path(temporary) / "run")
    known[which] = {
        **data, "command": ["nearfar", "images", "train", "simclr", *flags[2:]], "seconds": round(seconds, 1),
        "scores": scores, "environment": common.metadata(),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(known, indent=2) + "\n")
    for name in ("knn", "linear", "few_label"):
        if name in scores["after"]:
            print(f"{which} {name}: {scores['before'][name]['value']:.3f} -> {scores['after'][name]['value']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
