"""Methods that several plugins share; `Contrast` is the declarative frame, `Frame` what stands around any loss."""

from nearfar.methods.contrast import Contrast
from nearfar.methods.describe import describe
from nearfar.methods.frame import Frame, encode_views
from nearfar.methods.pair_loss import pair_loss

__all__ = ["Contrast", "Frame", "describe", "encode_views", "pair_loss"]
