"""Filters of unit norm: the manifold, optimisers on it, stacks of trainings, and which filters it costs nothing to constrain."""

from lib.unit_norm.constrain import UnitNormWarning, constrainable, unit_norm_parameters
from lib.unit_norm.diagnosis import Diagnosis, diagnose
from lib.unit_norm.manifold import ZeroFilter
from lib.unit_norm.network import Network
from lib.unit_norm.optimisers import UnitNormAdam, UnitNormSGD
from lib.unit_norm.schedules import BoldDriver, Constant, ExponentialDecay
from lib.unit_norm.steps import STEPS
from lib.unit_norm.training import Examples, Trained, train

__all__ = [
    "STEPS",
    "BoldDriver",
    "Constant",
    "Diagnosis",
    "Examples",
    "ExponentialDecay",
    "Network",
    "Trained",
    "UnitNormAdam",
    "UnitNormSGD",
    "UnitNormWarning",
    "ZeroFilter",
    "constrainable",
    "diagnose",
    "train",
    "unit_norm_parameters",
]
