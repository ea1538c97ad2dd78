"""Images with their channels last in memory: other strides, the same numbers."""

import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.objective.tensors import checkpoint_of
from tests.problems import DOUBLE, seeded


class _Network(nn.Module):
    def __init__(self, channels: int, flatten) -> None:
        super().__init__()
        self.conv, self.head, self.flatten = nn.Conv2d(channels, 4, 3), nn.Linear(64, 3), flatten

    def forward(self, x):
        return self.head(self.flatten(torch.tanh(self.conv(x))))


def _objective(channels: int, flatten) -> tuple[ModelObjective, torch.Tensor]:
    x = torch.randn(12, channels, 6, 6, generator=seeded(1), dtype=DOUBLE)
    y = torch.randint(0, 3, (12,), generator=seeded(2))
    return ModelObjective(_Network(channels, flatten).double(), nn.CrossEntropyLoss(), (x, y), batch_size=6), x


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_convolutional_network_have_their_channels_last(channels):
    f, x = _objective(channels, lambda y: y.flatten(1))
    for (images, _), _ in f._batches:
        assert images.stride() == (36 * channels, 1, 6 * channels, channels)
    assert torch.equal(torch.cat([images for (images, _), _ in f._batches]), x)


def test_the_numbers_are_those_of_the_usual_layout():
    f, _ = _objective(3, lambda y: y.flatten(1))
    g = f.at(checkpoint_of(f))
    g._batches[:] = [((images.contiguous(), y), count) for (images, y), count in g._batches]
    v = torch.randn(f.size, generator=seeded(3), dtype=DOUBLE)
    # rounding only
    torch.testing.assert_close(f.gradient(f.theta), g.gradient(f.theta), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(f.hvp(f.theta, v), g.hvp(f.theta, v), rtol=1e-12, atol=1e-14)
    assert f.data_digest() == g.data_digest()


def test_batch_norm_that_is_not_folded_keeps_the_usual_layout():
    x, y = torch.randn(12, 3, 6, 6, generator=seeded(1)), torch.randint(0, 3, (12,), generator=seeded(2))
    folded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    first = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    for model, usual in ((folded, False), (first, True)):
        f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y))
        assert all(images.is_contiguous() is usual for (images, _), _ in f._batches)


def test_a_network_that_does_not_take_them_gets_the_usual_layout():
    f, _ = _objective(3, lambda y: y.view(len(y), -1))  # fails where the channels are last
    assert all(images.is_contiguous() for (images, _), _ in f._batches)
    assert f.gradient(f.theta).isfinite().all()
