"""The global generators of random numbers, which are the user's."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["generators_kept", "state_of_generators"]


@contextmanager
def generators_kept(seed: int | None = None) -> Iterator[None]:
    """The global generators of torch, NumPy and Python are as before afterwards; within it, seeded if asked for."""
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


def state_of_generators() -> tuple[object, ...]:
    """That of the global generators, to be compared with a later one: another tells that something was drawn."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return random.getstate(), pickle.dumps(numpy), *(state.numpy().tobytes() for state in states)
