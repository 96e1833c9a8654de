"""Which stored embeddings serve as negatives, how hard they are, and harder ones mixed from them or climbing a loss.

Everything here is without gradient: the results are constants that an objective contrasts with, as `per_anchor`
vectors, as a `denominator` mask or as a `log_weight`. Vectors are compared by cosine, whatever their length.
"""

from nearfar.negatives.adversarial import adversarial_negatives
from nearfar.negatives.choose import Hardest, between, distance_weights, draw, hardest, quantile_band, semi_hard
from nearfar.negatives.mix import mix_pairs, mix_with_query, mochi
from nearfar.negatives.pairs import HardPairs, hard_pairs

__all__ = [
    "HardPairs", "Hardest", "adversarial_negatives", "between", "distance_weights", "draw", "hard_pairs", "hardest",
    "mix_pairs", "mix_with_query", "mochi", "quantile_band", "semi_hard",
]  # fmt: skip
