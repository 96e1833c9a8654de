"""Methods that several plugins share; `Contrast` is the declarative frame, `Frame` what stands around any loss."""

from nearfar.methods.contrast import Contrast
from nearfar.methods.frame import Frame, encode_views
from nearfar.methods.masked import pair_loss
from nearfar.methods.taxonomy import describe

__all__ = ["Contrast", "Frame", "describe", "encode_views", "pair_loss"]
