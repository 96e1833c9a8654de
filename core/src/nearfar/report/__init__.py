"""The page of a run: one HTML file that needs nothing else, neither network nor script. Loads no torch."""

from nearfar.report.page import write_report
from nearfar.report.pictures import NeighbourRow
from nearfar.report.plane import Embedding, map2d

__all__ = ["Embedding", "NeighbourRow", "map2d", "write_report"]
