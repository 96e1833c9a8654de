"""Small encoders that need torch alone."""

from nearfar.models.convnet import ConvNet
from nearfar.models.vit import TinyViT

__all__ = ["ConvNet", "TinyViT"]
