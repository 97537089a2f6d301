"""Matrix Gaussians: the distribution, laws of a layer's weights, layers for any module, and stacks trained side by side."""

from lib.matrix_gaussian.bayesianize import bayesianize
from lib.matrix_gaussian.convolution import MatrixGaussianConv2d
from lib.matrix_gaussian.distribution import MatrixGaussian
from lib.matrix_gaussian.laws import Factorised, Point, RowColumn
from lib.matrix_gaussian.layer import MatrixGaussianLinear, divergence, sampling
from lib.matrix_gaussian.pseudo_data import PseudoData

__all__ = [
    "Factorised",
    "MatrixGaussian",
    "MatrixGaussianConv2d",
    "MatrixGaussianLinear",
    "Point",
    "PseudoData",
    "RowColumn",
    "bayesianize",
    "divergence",
    "sampling",
]
