"""The state of the global random number generators, which evaluations must leave unchanged."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["preserve_rng_state", "rng_state"]


@contextmanager
def preserve_rng_state(seed: int | None = None) -> Iterator[None]:
    """Context that restores the state of the global generators of torch, NumPy and Python; inside, seeded if given."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def rng_state() -> tuple[object, ...]:
    """The state of the global generators, for comparison: a different one later means that numbers were drawn."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return random.getstate(), pickle.dumps(numpy), *(state.numpy().tobytes() for state in states)
