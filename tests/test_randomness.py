from types import SimpleNamespace

import pytest
import torch

from landscape.randomness import generator_or_new, normal, unit
from tests.problems import DOUBLE, seeded


def test_a_generator_is_passed_on_and_a_new_one_is_seeded_afresh():
    generator = seeded(0)
    assert generator_or_new(generator) is generator
    assert generator_or_new(None).initial_seed() != generator_or_new(None).initial_seed()


def test_precisions_agree_to_rounding():
    narrow, wide = (normal(100, seeded(0), dtype, torch.device("cpu")) for dtype in (torch.float32, DOUBLE))
    assert torch.equal(narrow, wide.float())
    assert float(unit(100, seeded(0), DOUBLE, torch.device("cpu")).norm()) == pytest.approx(1, rel=1e-14)  # rounding


def test_a_generator_of_another_device_is_refused():
    on_a_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    with pytest.raises(ValueError, match=r"generator is on cuda:0: give .*torch\.Generator\(\)"):
        generator_or_new(on_a_gpu)
