"""Training: `Trainer(method, data, config).fit()` on one process or many, resumable to the bit."""

from nearfar.train.checkpoint import CheckpointError
from nearfar.train.engine import Engine
from nearfar.train.optim import LARS
from nearfar.train.run import Run
from nearfar.train.stopping import Interrupted
from nearfar.train.trainer import Trainer

__all__ = ["LARS", "CheckpointError", "Engine", "Interrupted", "Run", "Trainer"]
