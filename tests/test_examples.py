"""What f is the mean of: the examples' losses, and which answers are right."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.results import standard_error
from tests.problems import DOUBLE, seeded, tiny_mlp, tiny_objective


def _pair(*shape: int, classes: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = seeded(0)
    inputs = torch.randn(shape[0], 4, generator=g, dtype=DOUBLE)
    targets = torch.randint(0, classes, shape, generator=g) if classes else torch.randn(*shape, generator=g).double()
    return inputs, targets


def test_the_examples_losses_are_those_of_each_alone():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=7)
    alone = [nn.functional.cross_entropy(model(x[None]), y[None]).item() for x, y in zip(inputs, targets, strict=True)]
    found = f.per_example(f.theta)
    np.testing.assert_allclose(found.loss, alone, rtol=1e-12)  # rounding of float64
    np.testing.assert_array_equal(found.right, (model(inputs).argmax(1) == targets).double())
    assert found.stderr() == pytest.approx(float(standard_error(np.array(alone))), rel=1e-12)
    assert found.accuracy_stderr() == pytest.approx(float(standard_error(found.right)), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), _pair(20, classes=3)[1]),
        (nn.functional.cross_entropy, _pair(20, classes=3)[1]),
        (nn.MSELoss(), _pair(20, 3)[1]),
        (nn.functional.l1_loss, _pair(20, 3)[1]),
        (lambda outputs, batch: outputs.square().mean(), _pair(20, 3)[1]),
    ],
)
def test_means_are_the_metrics_bit_for_bit_and_those_of_the_examples(loss, targets):
    model, _ = tiny_mlp()
    f = ModelObjective(model, loss, (_pair(20)[0], targets), batch_size=6, weight_decay=0.1)
    found = f.per_example(f.theta)
    assert found.metrics == f.metrics(f.theta)
    decay = 0.05 * float(f.theta.square().sum())
    assert found.counts @ found.loss / found.counts.sum() + decay == pytest.approx(found.metrics["loss"], rel=1e-12)


def test_a_loss_that_gives_only_means_is_known_by_batches():
    model, data = tiny_mlp()
    f = ModelObjective(model, lambda outputs, batch: outputs.square().mean(), data, batch_size=13)
    found = f.per_example(f.theta)
    assert found.counts.tolist() == [13, 13, 12, 12]
    # with equal batches it is the standard error of the mean of their means
    equal = ModelObjective(model, lambda outputs, batch: outputs.square().mean(), data, batch_size=10)
    batches = equal.per_example(equal.theta)
    assert batches.stderr() == pytest.approx(float(standard_error(batches.loss)), rel=1e-12)


def test_the_error_by_batches_is_on_average_that_by_examples():
    model, _ = tiny_mlp()
    inputs = torch.randn(20_000, 4, generator=seeded(1), dtype=DOUBLE)
    data = (inputs, torch.zeros(20_000, 3, dtype=DOUBLE))
    by_example = ModelObjective(model, nn.MSELoss(), data)
    by_batch = ModelObjective(model, lambda outputs, batch: outputs.square().mean(), data, batch_size=33)
    # 607 batches: a variance of 606 degrees of freedom is known to sqrt(2/606) = 6 %, its root to 3 %; three of these
    ratio = by_batch.per_example(by_batch.theta).stderr() / by_example.per_example(by_example.theta).stderr()
    assert ratio == pytest.approx(1, abs=0.09)


def test_a_constant_difference_has_no_error_though_the_losses_have():
    f = tiny_objective()
    shift = torch.zeros_like(f.theta)
    shift[-3:] = 1.0  # the same added to all logits: no loss changes
    here, there = f.per_example(f.theta), f.per_example(f.theta + shift)
    assert here.stderr() > 0.01
    assert there.stderr(here) < 1e-15  # rounding


def test_accuracy_by_class_averages_to_the_accuracy_and_is_nan_for_a_class_without_examples():
    model, (inputs, targets) = tiny_mlp()
    f = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets), batch_size=7)
    found = f.per_example(f.theta)
    counts = np.bincount(targets)
    assert counts @ found.class_accuracy / len(targets) == pytest.approx(found.metrics["accuracy"], rel=1e-12)
    without = ModelObjective(model, nn.CrossEntropyLoss(), (inputs, targets.clamp(max=1)))
    assert np.isnan(without.per_example(without.theta).class_accuracy).tolist() == [False, False, True]


def test_an_example_with_many_answers_counts_once():
    class PerPosition(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 15).double()

        def forward(self, x):
            return self.linear(x).view(-1, 3, 5)

    inputs, targets = _pair(20, 5, classes=3)
    f = ModelObjective(PerPosition(), nn.CrossEntropyLoss(), (inputs, targets), batch_size=6)
    found = f.per_example(f.theta)
    assert found.loss.shape == found.right.shape == (20,)
    assert found.loss.mean() == pytest.approx(found.metrics["loss"], rel=1e-12)
    assert found.right.mean() == pytest.approx(found.metrics["accuracy"], rel=1e-12)


def test_losses_that_are_not_finite_have_no_error():
    f = tiny_objective()
    with np.errstate(all="raise"):
        broken = f.per_example(f.theta * float("nan"))
        assert np.isnan(broken.stderr())
        assert np.isnan(broken.stderr(f.per_example(f.theta)))
