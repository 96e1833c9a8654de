"""Prototypes: balanced codes, clusters, mixtures, class statistics, moving averages, neighbour graphs, subsets, words.

Everything is a pure function or a thin Module over buffers. `distributed=True` makes a call a collective whose
result is that of one process with the rows of all.
"""

from nearfar.prototypes.ema import Prototypes
from nearfar.prototypes.graph import knn_graph, neighbour_graph, smooth
from nearfar.prototypes.kmeans import Clusters, assign, kmeans
from nearfar.prototypes.levels import between_ratio, level_masks
from nearfar.prototypes.mixture import Mixture, gaussian_mixture
from nearfar.prototypes.repair import repair_clusters
from nearfar.prototypes.rerank import k_reciprocal
from nearfar.prototypes.sinkhorn import sinkhorn
from nearfar.prototypes.statistics import ClassStatistics
from nearfar.prototypes.subset import Selection, class_subset, lazy_greedy
from nearfar.prototypes.swapped import swapped_prediction
from nearfar.prototypes.words import bag_of_words, word_distances

__all__ = [
    "ClassStatistics",
    "Clusters",
    "Mixture",
    "Prototypes",
    "Selection",
    "assign",
    "bag_of_words",
    "between_ratio",
    "class_subset",
    "gaussian_mixture",
    "k_reciprocal",
    "kmeans",
    "knn_graph",
    "lazy_greedy",
    "level_masks",
    "neighbour_graph",
    "repair_clusters",
    "sinkhorn",
    "smooth",
    "swapped_prediction",
    "word_distances",
]
