from __future__ import annotations

import matplotlib as mpl
import pytest
import torch


@pytest.fixture(autouse=True)
def _off_screen_and_reproducible() -> None:
    mpl.use("Agg")
    torch.manual_seed(0)  # for networks that tests build; the library never reads this generator
