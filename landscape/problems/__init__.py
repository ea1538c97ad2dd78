"""Built-in problems, and loading of user-defined ones."""

from landscape.problems.digits import digits_cnn, digits_mlp
from landscape.problems.find import BUILT_IN, find_problem
from landscape.problems.mnist import mnist_fc, mnist_lenet
from landscape.problems.problem import Problem

__all__ = [
    "BUILT_IN",
    "Problem",
    "digits_cnn",
    "digits_mlp",
    "find_problem",
    "mnist_fc",
    "mnist_lenet",
]
