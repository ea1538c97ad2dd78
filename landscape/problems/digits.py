"""scikit-learn's digits: 1,797 images of 8 x 8 pixels, 1,437 to train on and 360 to test.

UCI's Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998); scikit-learn carries it, so nothing
is downloaded.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from landscape.problems.problem import Problem

__all__ = ["digits_cnn", "digits_mlp"]

Pair = tuple[Tensor, Tensor]


def digits_cnn() -> Problem:
    """Two convolutions (8 and 16 channels), then 32 hidden units: 3,658 weights, ReLU."""
    train, test = _digits()
    return Problem("digits_cnn", _cnn, nn.CrossEntropyLoss(), train, test)


def digits_mlp() -> Problem:
    """64-32-10 with tanh: 2,410 weights, small and smooth enough for a dense Hessian."""
    train, test = _digits()
    return Problem("digits_mlp", _mlp, nn.CrossEntropyLoss(), train, test)


def _digits() -> tuple[Pair, Pair]:
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bunch.target)
    # the split is part of the problem, so its seed is fixed
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=bunch.target, random_state=0)
    return (images[train], labels[train]), (images[test], labels[test])


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
