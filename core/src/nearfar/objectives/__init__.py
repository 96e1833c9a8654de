"""The equations: one family a file, each a pure function and a thin Module with the same defaults.

An objective knows no process group. Over several processes pass `gathered`, the candidates of all of them, and
`offset`, where the local rows begin; weigh each process's mean by `Stats.num_anchors`.
"""

from __future__ import annotations

from nearfar.objectives.clip import CLIP, clip
from nearfar.objectives.dcl import DCL, dcl, vmf_weight
from nearfar.objectives.debiased import Debiased, debiased, debiased_floor
from nearfar.objectives.info_nce import InfoNCE, info_nce
from nearfar.objectives.nt_xent import NTXent, nt_xent
from nearfar.objectives.ranked_clip import RankedCLIP, fuse_fields, ranked_clip, relevance_weight
from nearfar.objectives.siglip import SigLIP, siglip
from nearfar.objectives.supcon import SupCon, supcon

__all__ = [
    "CLIP",
    "DCL",
    "Debiased",
    "InfoNCE",
    "NTXent",
    "RankedCLIP",
    "SigLIP",
    "SupCon",
    "clip",
    "dcl",
    "debiased",
    "debiased_floor",
    "fuse_fields",
    "info_nce",
    "nt_xent",
    "ranked_clip",
    "relevance_weight",
    "siglip",
    "supcon",
    "vmf_weight",
]
