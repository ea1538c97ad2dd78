"""Checkpoints: the named tensors of networks, read from the files of trainers and matched to a network's names."""

from landscape.checkpoints.checkpoint import Checkpoint
from landscape.checkpoints.names import unwrapped
from landscape.checkpoints.reading import load_checkpoint, load_checkpoints

__all__ = ["Checkpoint", "load_checkpoint", "load_checkpoints", "unwrapped"]
