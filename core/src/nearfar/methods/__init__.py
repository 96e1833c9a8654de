"""Methods that several plugins share; `Contrast` is the declarative frame, `Frame` what stands around any loss."""

from nearfar.methods.contrast import Contrast
from nearfar.methods.frame import Frame, encode_views

__all__ = ["Contrast", "Frame", "encode_views"]
