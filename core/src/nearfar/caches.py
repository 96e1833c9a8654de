"""Where things that are made once are kept, and how several processes make them once. Loads no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def cache_folder(cache: str = "") -> Path:
    """The given folder, or that of NEARFAR_CACHE, or nearfar's in the user's cache."""
    chosen = cache or os.environ.get("NEARFAR_CACHE", "")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nearfar"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time makes a folder; the system lifts the lock when its holder dies.

    Work goes on in folders beside it, named `<folder>.*.part`; those of makers that were killed are removed.
    """
    if os.name != "posix":
        # Without such locks several makers each make their own, and the first to rename it wins.
        yield
        return
    import fcntl

    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.parent.glob(f"{folder.name}.*.part"):
            shutil.rmtree(left)
        yield
