"""The equations: one family a file, each a pure function and a thin Module with the same defaults.

An objective knows no process group. Over several processes pass `gathered`, the candidates of all of them, and
`offset`, where the local rows begin; weigh each process's mean by `Stats.num_anchors`.
"""

from __future__ import annotations

from nearfar.objectives.align_uniform import AlignUniform, align_uniform, alignment, uniformity
from nearfar.objectives.barlow import Barlow, barlow, barlow_terms
from nearfar.objectives.block_contrast import BlockContrast, block_contrast
from nearfar.objectives.cacr import CACR, CACRMomentum, cacr, cacr_momentum, cacr_parts
from nearfar.objectives.circle import Circle, circle
from nearfar.objectives.clip import CLIP, clip
from nearfar.objectives.correlation_information import correlation_information
from nearfar.objectives.dcl import DCL, dcl, vmf_weight
from nearfar.objectives.debiased import Debiased, debiased, debiased_floor
from nearfar.objectives.decoupled_uniformity import DecoupledUniformity, centroid_alignment, decoupled_uniformity
from nearfar.objectives.dense_contrast import (
    DenseContrast,
    dense_contrast,
    grid_centres,
    match_positions,
    near_cells,
    near_points,
)
from nearfar.objectives.discriminator import discriminator
from nearfar.objectives.dual_view import dual_view
from nearfar.objectives.focal import FocalSupCon, focal, focal_supcon
from nearfar.objectives.gml import GML, gml, log_likelihood
from nearfar.objectives.hmce import hmce
from nearfar.objectives.hmlc import HMLC, hmlc, path_ids
from nearfar.objectives.hydra import class_pairs, gated_cosine, hydra
from nearfar.objectives.info_nce import InfoNCE, info_nce
from nearfar.objectives.kernel_mixture import KernelInfoNCE, KernelMixture, kernel_info_nce, kernel_mixture
from nearfar.objectives.lorentz_clip import LorentzCLIP, entailment, lorentz_clip
from nearfar.objectives.macl import MACL, macl, macl_state, macl_temperature
from nearfar.objectives.map_contrast import map_contrast, map_cosine
from nearfar.objectives.margin import Margin, margin
from nearfar.objectives.multi_label import MultiLabel, multi_label, nearest_labels
from nearfar.objectives.multi_similarity import MultiSimilarity, multi_similarity
from nearfar.objectives.multi_view import (
    MVDHEL,
    MultiViewBaseline,
    MVInfoNCE,
    multi_view_baseline,
    mv_dhel,
    mv_infonce,
)
from nearfar.objectives.mutual_information import MutualInformation, gaussian_information, mutual_information
from nearfar.objectives.n_pairs import NPairs, n_pairs
from nearfar.objectives.nce import BinaryNCE, RankingNCE, binary_nce, ranking_nce
from nearfar.objectives.nt_xent import NTXent, nt_xent
from nearfar.objectives.pair_margin import PairMargin, pair_margin
from nearfar.objectives.patch_nce import PatchNCE, patch_nce
from nearfar.objectives.poly_view import PolyView, information_bound, poly_view
from nearfar.objectives.proto_nce import ProtoNCE, concentration, proto_nce
from nearfar.objectives.ranked_clip import RankedCLIP, fuse_fields, ranked_clip, relevance_weight
from nearfar.objectives.regression import Regression, regression
from nearfar.objectives.renyi import Renyi, renyi
from nearfar.objectives.self_distillation import (
    MaskedDistillation,
    SelfDistillation,
    centred_softmax,
    masked_distillation,
    self_distillation,
    update_centre,
)
from nearfar.objectives.siglip import SigLIP, siglip
from nearfar.objectives.simcse import SimCSE, simcse
from nearfar.objectives.smoothed_clip import SmoothedCLIP, smoothed_clip
from nearfar.objectives.spectral import Spectral, spectral
from nearfar.objectives.supcon import SupCon, supcon
from nearfar.objectives.supremix import SupReMix, label_mixtures, supremix
from nearfar.objectives.triplet import Triplet, triplet, triplet_count
from nearfar.objectives.vicreg import VICReg, vicreg, vicreg_terms
from nearfar.objectives.wmse import WMSE, whiten, wmse

__all__ = [
    "CACR",
    "CLIP",
    "DCL",
    "GML",
    "HMLC",
    "MACL",
    "MVDHEL",
    "WMSE",
    "AlignUniform",
    "Barlow",
    "BinaryNCE",
    "BlockContrast",
    "CACRMomentum",
    "Circle",
    "Debiased",
    "DecoupledUniformity",
    "DenseContrast",
    "FocalSupCon",
    "InfoNCE",
    "KernelInfoNCE",
    "KernelMixture",
    "LorentzCLIP",
    "MVInfoNCE",
    "Margin",
    "MaskedDistillation",
    "MultiLabel",
    "MultiSimilarity",
    "MultiViewBaseline",
    "MutualInformation",
    "NPairs",
    "NTXent",
    "PairMargin",
    "PatchNCE",
    "PolyView",
    "ProtoNCE",
    "RankedCLIP",
    "RankingNCE",
    "Regression",
    "Renyi",
    "SelfDistillation",
    "SigLIP",
    "SimCSE",
    "SmoothedCLIP",
    "Spectral",
    "SupCon",
    "SupReMix",
    "Triplet",
    "VICReg",
    "align_uniform",
    "alignment",
    "barlow",
    "barlow_terms",
    "binary_nce",
    "block_contrast",
    "cacr",
    "cacr_momentum",
    "cacr_parts",
    "centred_softmax",
    "centroid_alignment",
    "circle",
    "class_pairs",
    "clip",
    "concentration",
    "correlation_information",
    "dcl",
    "debiased",
    "debiased_floor",
    "decoupled_uniformity",
    "dense_contrast",
    "discriminator",
    "dual_view",
    "entailment",
    "focal",
    "focal_supcon",
    "fuse_fields",
    "gated_cosine",
    "gaussian_information",
    "gml",
    "grid_centres",
    "hmce",
    "hmlc",
    "hydra",
    "info_nce",
    "information_bound",
    "kernel_info_nce",
    "kernel_mixture",
    "label_mixtures",
    "log_likelihood",
    "lorentz_clip",
    "macl",
    "macl_state",
    "macl_temperature",
    "map_contrast",
    "map_cosine",
    "margin",
    "masked_distillation",
    "match_positions",
    "multi_label",
    "multi_similarity",
    "multi_view_baseline",
    "mutual_information",
    "mv_dhel",
    "mv_infonce",
    "n_pairs",
    "near_cells",
    "near_points",
    "nearest_labels",
    "nt_xent",
    "pair_margin",
    "patch_nce",
    "path_ids",
    "poly_view",
    "proto_nce",
    "ranked_clip",
    "ranking_nce",
    "regression",
    "relevance_weight",
    "renyi",
    "self_distillation",
    "siglip",
    "simcse",
    "smoothed_clip",
    "spectral",
    "supcon",
    "supremix",
    "triplet",
    "triplet_count",
    "uniformity",
    "update_centre",
    "vicreg",
    "vicreg_terms",
    "vmf_weight",
    "whiten",
    "wmse",
]
