"""Methods that several plugins share; `Contrast` is the declarative frame."""

from nearfar.methods.contrast import Contrast

__all__ = ["Contrast"]
