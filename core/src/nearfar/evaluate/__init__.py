"""Scores of frozen features, each with its interval."""

from nearfar.evaluate.clustering import clustering
from nearfar.evaluate.embedding import evaluate_embedding
from nearfar.evaluate.geometry import collapse, geometry
from nearfar.evaluate.knn import knn, neighbours, predict
from nearfar.evaluate.probe import Probe, few_label_probe, fit_probe, linear_probe
from nearfar.evaluate.regression import regression_probe
from nearfar.evaluate.retrieval import retrieval
from nearfar.evaluate.score import Score, bootstrap, mean_interval, wilson

__all__ = [
    "Probe",
    "Score",
    "bootstrap",
    "clustering",
    "collapse",
    "evaluate_embedding",
    "few_label_probe",
    "fit_probe",
    "geometry",
    "knn",
    "linear_probe",
    "mean_interval",
    "neighbours",
    "predict",
    "regression_probe",
    "retrieval",
    "wilson",
]
