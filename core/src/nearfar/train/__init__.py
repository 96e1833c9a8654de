"""Training: `Trainer(method, data, config).fit()` on one process or many, resumable to the bit."""

from nearfar.train.artefacts import Arrays, Artefact, Features, IndexSet, Labels, PairSet, TrainedRun, Values
from nearfar.train.checkpoint import CheckpointError
from nearfar.train.engine import Engine
from nearfar.train.minnorm import min_norm_backward, min_norm_weights
from nearfar.train.optim import LARS
from nearfar.train.pipeline import Context, Pipeline, Stage, train_stage
from nearfar.train.run import Run
from nearfar.train.stopping import Interrupted
from nearfar.train.trainer import Trainer

__all__ = [
    "LARS", "Arrays", "Artefact", "CheckpointError", "Context", "Engine", "Features", "IndexSet", "Interrupted",
    "Labels", "PairSet", "Pipeline", "Run", "Stage", "TrainedRun", "Trainer", "Values", "min_norm_backward",
    "min_norm_weights", "train_stage",
]  # fmt: skip
