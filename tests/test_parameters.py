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


def _filter_shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    space = ParameterSpace.of(model)
    return [(name, tuple(filters.shape)) for name, filters in space.filters(torch.zeros(space.size))]


def test_filters_are_slices_of_dimension_zero():
    expected = [("0.weight", (3, 8)), ("0.bias", (3, 1)), ("2.weight", (4, 12)), ("2.bias", (4, 1))]
    assert _filter_shapes(_conv_net()) == expected
    assert _filter_shapes(nn.Embedding(7, 5)) == [("weight", (7, 5))]
    assert _filter_shapes(nn.Bilinear(2, 3, 4, bias=False)) == [("weight", (4, 6))]


def test_every_weight_is_in_one_filter():
    model = nn.Sequential(
        _conv_net(), nn.ConvTranspose1d(4, 6, 3, groups=2), nn.LSTM(2, 3, proj_size=2), nn.LayerNorm((2, 3))
    )
    space = ParameterSpace.of(model)
    counted = torch.zeros(space.size)
    for _, filters in space.filters(counted):
        filters.add_(1)
    assert torch.equal(counted, torch.ones(space.size))


def test_a_filter_of_a_transposed_convolution_is_all_that_one_output_channel_reads():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False)
    space = ParameterSpace.of(layer)
    weights = space.flatten(dict(layer.named_parameters()))
    filters = torch.cat([group for _, group in space.filters(weights)])
    assert filters.shape == (6, 2, 3)  # two of the four input channels feed each
    inputs = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    for channel in range(6):
        silenced = weights.clone()
        groups = [group for _, group in space.filters(silenced)]
        groups[channel // 3][channel % 3].zero_()
        outputs = torch.func.functional_call(layer, space.views(silenced), (inputs,))
        silent = (outputs == 0).all(dim=2)[0]
        assert silent.nonzero().flatten().tolist() == [channel]


def test_a_filter_of_a_recurrent_layer_is_a_gate():
    for layer, gates in ((nn.LSTM(2, 3), 4), (nn.GRU(2, 3), 3), (nn.RNN(2, 3), 1)):
        assert _filter_shapes(layer) == [
            ("weight_ih_l0", (gates, 6)),
            ("weight_hh_l0", (gates, 9)),
            ("bias_ih_l0", (gates, 3)),
            ("bias_hh_l0", (gates, 3)),
        ]
    assert _filter_shapes(nn.LSTMCell(2, 3))[0] == ("weight_ih", (4, 6))
    shapes = dict(_filter_shapes(nn.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=2)))
    assert shapes["weight_hh_l1_reverse"] == (4, 6)
    assert shapes["weight_hr_l0"] == (2, 3)  # the projection is an ordinary linear layer


def test_a_filter_of_a_linear_layer_of_gpt2_feeds_one_output():
    from transformers.pytorch_utils import Conv1D  # slow to import

    # it computes inputs @ weight, so a unit's incoming weights are a column
    assert dict(_filter_shapes(Conv1D(6, 2)))["weight"] == (6, 2)


def test_biases_and_normalisation_layers_are_one_dimensional():
    model = nn.Sequential(_conv_net(), nn.BatchNorm1d(4), nn.LayerNorm((2, 3)), nn.LSTM(2, 3), nn.RMSNorm((2, 2)))
    space = ParameterSpace.of(model)
    matrices = {"0.0.weight", "0.2.weight", "3.weight_ih_l0", "3.weight_hh_l0"}
    assert set(space.names) - space.one_dimensional == matrices
    assert dict(_filter_shapes(model))["2.weight"] == (6, 1)  # two dimensions in shape, but one scale per feature


def test_empty_and_scalar_parameters_have_filters_too():
    model = nn.Module()
    model.empty, model.scalar = nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.tensor(1.0))
    assert _filter_shapes(model) == [("empty", (0, 3)), ("scalar", (1, 1))]


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
