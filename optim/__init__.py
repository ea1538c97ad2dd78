"""Entropy-SGD, and a training loop that counts gradients."""

from optim.entropy_sgd import EntropySGD
from optim.training import TrainingRecord, train

__all__ = ["EntropySGD", "TrainingRecord", "train"]
