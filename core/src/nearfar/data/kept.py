"""Small tables that are made once from large files and found again."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


def kept(place: Path, read: Callable[[Path], T], make: Callable[[], T], write: Callable[[Path, T], None]) -> T:
    """What `read` finds at a place, or what `make` gives, which `write` then puts there under another name, renamed
    when whole. Several processes may each make it; the last one to finish wins, with the same content.

    A file that cannot be read is made anew; a folder that cannot be written costs only the time to make it again.
    """
    if place.is_file():
        try:
            return read(place)
        except ValueError as error:
            log.warning("%s: made anew, since %s", place, error)
    made = make()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f"{place.name}.", suffix=".part", dir=place.parent)
        os.close(handle)
        try:
            write(Path(partial), made)
            os.replace(partial, place)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: not kept for the next run: %s", place, error)
    return made
