"""The equations: one family a file, each a pure function and a thin Module with the same defaults.

An objective knows no process group. Over several processes pass `gathered`, the candidates of all of them, and
`offset`, where the local rows begin; weigh each process's mean by `Stats.num_anchors`.
"""

from __future__ import annotations

from nearfar.objectives.clip import CLIP, clip
from nearfar.objectives.dcl import DCL, dcl, vmf_weight
from nearfar.objectives.info_nce import InfoNCE, info_nce
from nearfar.objectives.nt_xent import NTXent, nt_xent
from nearfar.objectives.siglip import SigLIP, siglip
from nearfar.objectives.supcon import SupCon, supcon

__all__ = [
    "CLIP",
    "DCL",
    "InfoNCE",
    "NTXent",
    "SigLIP",
    "SupCon",
    "clip",
    "dcl",
    "info_nce",
    "nt_xent",
    "siglip",
    "supcon",
    "vmf_weight",
]
