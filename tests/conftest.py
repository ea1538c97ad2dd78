from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch


@pytest.fixture(autouse=True)
def _off_screen_and_reproducible() -> Iterator[None]:
    mpl.use("Agg")
    torch.manual_seed(0)  # for networks that tests build; the library never reads this generator
    yield
    plt.close("all")
