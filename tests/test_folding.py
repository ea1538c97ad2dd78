"""Frozen BatchNorm folded into the layer before it: the same function, derivatives included, or not folded."""

import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.objective.tensors import checkpoint_of
from tests.problems import DOUBLE, seeded

# float64 against float64: rounding only, in another order of operations
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def _with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    g = seeded(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_(generator=g)
            module.running_var.uniform_(0.5, 2, generator=g)
    return model.double().eval()


def _images(channels: int = 2, dimensions: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(12, channels, *[6] * dimensions, generator=seeded(1), dtype=DOUBLE)
    return x, torch.randint(0, 3, (12,), generator=seeded(2))


def _head(width: int) -> list[nn.Module]:
    return [nn.Tanh(), nn.Flatten(), nn.Linear(width, 3)]


def _check(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], folds: int, **options: bool) -> None:
    """f and its derivatives are those that torch finds of the network itself."""
    f = ModelObjective(model, nn.CrossEntropyLoss(), data, **options)
    assert len(f._evaluation.folds) == folds
    names, start = f.space.names, f.theta + 0.1 * torch.randn(f.size, generator=seeded(3), dtype=DOUBLE)
    v = torch.randn(f.size, generator=seeded(4), dtype=DOUBLE)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        weights = dict(zip(names, f.space.views(theta).values(), strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (data[0],)), data[1])

    value, gradient = f.value_and_gradient(start)
    torch.testing.assert_close(torch.tensor(value, dtype=DOUBLE), loss(start), **EXACT)
    torch.testing.assert_close(gradient, torch.func.grad(loss)(start), **EXACT)
    product = torch.autograd.functional.hvp(loss, start, v)[1]
    torch.testing.assert_close(f.hvp(start, v), product, **EXACT)


@pytest.mark.parametrize(
    ("layers", "data"),
    [
        ([nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64)], _images()),
        ([nn.Conv2d(2, 4, 3, bias=False, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), *_head(36)], _images()),
        ([nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), *_head(144)], _images()),
        ([nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), *_head(64)], _images()),
        ([nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), *_head(16)], _images(dimensions=1)),
        ([nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), *_head(256)], _images(dimensions=3)),
        ([nn.Flatten(), nn.Linear(72, 5), nn.Dropout(), nn.BatchNorm1d(5), *_head(5)], _images()),
    ],
    ids=["conv2d", "grouped", "circular", "no affine", "conv1d", "conv3d", "linear"],
)
def test_folded_or_not_it_is_the_same_function(layers, data):
    _check(_with_statistics(nn.Sequential(*layers)), data, folds=1)


class _Twice(nn.Module):
    """The convolution's outputs go into BatchNorm, and elsewhere too."""

    def __init__(self, other) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), other
        self.head = nn.Sequential(*_head(64))

    def forward(self, x):
        y = self.conv(x)
        return self.head(self.other(y, self.norm(y)))


@pytest.mark.parametrize(
    "other",
    [
        lambda y, z: y + z,
        lambda y, z: z * y.detach().mean(),
        lambda y, z: z + (y - y.detach()),  # of value zero, but not its gradient
    ],
    ids=["skip", "detached", "straight through"],
)
def test_a_layer_whose_outputs_something_else_takes_too_is_not_folded(other):
    # whole, since a mean over the batch is among them
    _check(_with_statistics(_Twice(other)), _images(), folds=0, whole_batches=True)


def test_the_identity_that_a_fresh_batch_norm_is_does_not_deceive():
    """Left out anywhere it would change nothing: only with other statistics is it seen what belongs together."""
    model = _Twice(lambda y, z: y + z).double().eval()
    assert not ModelObjective(model, nn.CrossEntropyLoss(), _images())._evaluation.folds
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64)).double()
    assert len(ModelObjective(model, nn.CrossEntropyLoss(), _images())._evaluation.folds) == 1


@pytest.mark.filterwarnings("ignore:no gradient reaches")  # BatchNorm that is replaced
def test_layers_used_twice_or_changed_or_watched_are_not_folded():
    conv, norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
    _check(_with_statistics(nn.Sequential(conv, norm, conv, norm, *_head(72))), _images(), folds=0)

    class InPlace(nn.Sequential):
        def forward(self, x):
            y = self[0](x)
            y += 1
            for layer in list(self)[1:]:
                y = layer(y)
            return y

    _check(_with_statistics(InPlace(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64))), _images(), folds=0)

    watched = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64))
    watched[0].register_forward_hook(lambda module, inputs, outputs: None)
    _check(_with_statistics(watched), _images(), folds=0)

    replaced = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64))
    replaced[1].forward = torch.tanh  # on the instance
    f = ModelObjective(_with_statistics(replaced), nn.CrossEntropyLoss(), _images())
    assert not f._evaluation.folds
    f.gradient(f.theta)
    assert replaced[1].forward is torch.tanh

    parametrized = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64))
    nn.utils.parametrizations.weight_norm(parametrized[0])
    assert not ModelObjective(_with_statistics(parametrized), nn.CrossEntropyLoss(), _images())._evaluation.folds


def test_statistics_of_a_batch_are_not_folded():
    model = _with_statistics(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64)))
    assert not ModelObjective(model, nn.CrossEntropyLoss(), _images(), batch_norm="batch")._evaluation.folds
    own = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), *_head(64)).double()
    _check(own.eval(), _images(), folds=0, whole_batches=True)


def test_recalibrated_statistics_are_folded_at_every_theta():
    model = _with_statistics(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64)))
    x, y = _images()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y), batch_norm="recalibrated")
    theta = f.theta + 0.3
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    h = model[0](x)
    mean, variance = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True)
    normal = (h - mean) / (variance + model[1].eps).sqrt()
    z = normal * model[1].weight[:, None, None] + model[1].bias[:, None, None]
    expected = nn.functional.cross_entropy(model[2:](z), y)
    assert len(f._evaluation.folds) == 1
    torch.testing.assert_close(torch.tensor(f.value(theta), dtype=DOUBLE), expected, **EXACT)


def test_folding_leaves_the_statistics_as_they_were():
    model = _with_statistics(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *_head(64)))
    f = ModelObjective(model, nn.CrossEntropyLoss(), _images())
    assert f._evaluation.folds
    for name, own in model.named_buffers():
        assert torch.equal(checkpoint_of(f).tensors[name], own)
    assert all("forward" not in vars(module) for module in model.modules())
