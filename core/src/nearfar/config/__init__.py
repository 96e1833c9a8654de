"""The typed options of every part that a recipe puts together; importing this module loads no torch.

Every field is a flag on the command line (`--trainer.batch-size 512`) and a key of the run's recipe.json. Values are
checked when a config is made, so that a wrong one is refused before any work starts.
"""

from nearfar.config.contrast import BarlowConfig, ContrastConfig, VICRegConfig, WMSEConfig
from nearfar.config.inputs import DataConfig, ImageViewConfig, SamplerConfig
from nearfar.config.method import DataInfo, EncoderConfig, FrameConfig, HeadConfig, MethodConfig
from nearfar.config.training import EvaluateConfig, OptimiserConfig, TrainerConfig

__all__ = [
    "BarlowConfig",
    "ContrastConfig",
    "DataConfig",
    "DataInfo",
    "EncoderConfig",
    "EvaluateConfig",
    "FrameConfig",
    "HeadConfig",
    "ImageViewConfig",
    "MethodConfig",
    "OptimiserConfig",
    "SamplerConfig",
    "TrainerConfig",
    "VICRegConfig",
    "WMSEConfig",
]
