import pytest
import torch
from torch import nn

from landscape.parameters import ParameterSpace


def _conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4))


def test_flatten_and_views_are_inverse():
    model = _conv_net()
    space = ParameterSpace.of(model)
    named = dict(model.named_parameters())
    theta = space.flatten(named)
    assert theta.shape == (space.size,) == (sum(p.numel() for p in model.parameters()),)
    for name, view in space.views(theta).items():
        torch.testing.assert_close(view, named[name].detach(), rtol=0, atol=0)


def test_views_share_memory_with_the_vector():
    space = ParameterSpace.of(_conv_net())
    theta = torch.zeros(space.size)
    next(iter(space.views(theta).values())).fill_(1.0)
    assert theta.sum() == 3 * 2 * 2 * 2


def test_frozen_parameters_are_left_out_and_tied_ones_appear_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    assert ParameterSpace.of(model).names == ("0.weight", "1.bias")


def test_filters_are_slices_of_dimension_zero():
    space = ParameterSpace.of(_conv_net())
    shapes = {name: tuple(rows.shape) for name, rows in space.filters(torch.zeros(space.size))}
    assert shapes == {"0.weight": (3, 8), "0.bias": (3, 1), "2.weight": (4, 12), "2.bias": (4, 1)}


def test_empty_and_scalar_parameters_have_filters_too():
    space = ParameterSpace(("empty", "scalar"), (torch.Size([0, 3]), torch.Size([])))
    assert [tuple(rows.shape) for _, rows in space.filters(torch.zeros(1))] == [(0, 3), (1, 1)]


def test_bad_input_is_named():
    model = _conv_net()
    space = ParameterSpace.of(model)
    with pytest.raises(ValueError, match=r"vector has shape \(3,\).*\(79,\)"):
        space.views(torch.zeros(3))
    with pytest.raises(ValueError, match=r"'0\.weight'.*\(1, 1\).*\(3, 2, 2, 2\)"):
        space.flatten({**dict(model.named_parameters()), "0.weight": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match=r"lack '2\.bias'"):
        space.flatten({k: v for k, v in model.named_parameters() if k != "2.bias"})
    with pytest.raises(ValueError, match="requires_grad"):
        ParameterSpace.of(model.requires_grad_(False))
