"""MNIST and similar data sets from a folder of IDX files, with the two MNIST networks of the Entropy-SGD paper.

The folder holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
``t10k-labels-idx1-ubyte``, plain or gzipped (``.gz``). Fashion-MNIST and other data sets in that format work too.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from landscape.problems.problem import Problem

__all__ = ["lenet", "mnist_fc", "mnist_lenet"]


def mnist_lenet(folder: str | Path) -> Problem:
    """The paper's LeNet on the IDX files in ``folder``: 131,220 weights.

    Convolutions of 20 and 50 channels (5 x 5) with BatchNorm, 500 hidden units with dropout. The paper
    gives no dropout probability; 0.5 is ours.
    """
    train, test = _read(Path(folder))
    return Problem("mnist_lenet", lenet, nn.CrossEntropyLoss(), train, test)


def mnist_fc(folder: str | Path) -> Problem:
    """The paper's mnistfc, 784-1024-1024-10 with BatchNorm and dropout (0.5, ours), on ``folder``."""
    train, test = _read(Path(folder))
    return Problem("mnist_fc", _fc, nn.CrossEntropyLoss(), train, test)


def _read(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return _split(folder, "train"), _split(folder, "t10k")


def _split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(_idx(folder / f"{split}-images-idx3-ubyte"))
    labels = torch.from_numpy(_idx(folder / f"{split}-labels-idx1-ubyte"))
    if len(images) != len(labels):
        raise ValueError(
            f"folder={str(folder)!r} has {len(images)} {split} images and {len(labels)} labels: the "
            "files must be of one data set"
        )
    # normalised by the mean and standard deviation of MNIST, the usual constants
    return (images.float().unsqueeze(1) / 255 - 0.1307) / 0.3081, labels.long()


def _idx(path: Path) -> np.ndarray:
    """An IDX file: two zero bytes, 8 (unsigned bytes), the number of dimensions, their big-endian sizes."""
    zipped = path.with_name(path.name + ".gz")
    if path.is_file():
        content = path.read_bytes()
    elif zipped.is_file():
        content = gzip.decompress(zipped.read_bytes())
    else:
        raise FileNotFoundError(
            f"folder={str(path.parent)!r} has neither {path.name} nor {zipped.name}: give the folder of "
            "the four IDX files"
        )
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes: fetch it again")
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != shape.prod():
        raise ValueError(f"{path.name} holds {len(values)} values, its header says {shape.prod()}: fetch it again")
    return values.reshape(shape).copy()


def lenet() -> nn.Module:
    """The network of ``mnist_lenet``."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(20, 50, 5),
        nn.BatchNorm2d(50),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(200, 500),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(500, 10),
    )


def _fc() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 1024),
        nn.BatchNorm1d(1024),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1024, 1024),
        nn.BatchNorm1d(1024),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1024, 10),
    )
