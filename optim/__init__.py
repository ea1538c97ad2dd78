"""Entropy-SGD and its kin, and a training loop that counts gradients."""

from optim.batch_norm import refresh_batch_norm
from optim.entropy import EntropyOptimizer
from optim.entropy_sgd import EntropyAdam, EntropySGD
from optim.training import TrainingRecord, cosine, train

__all__ = ["EntropyAdam", "EntropyOptimizer", "EntropySGD", "TrainingRecord", "cosine", "refresh_batch_norm", "train"]
