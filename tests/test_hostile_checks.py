"""Gauss-Newton products of nothing, tensors in closures, tiny losses, kinks, layouts, errors that name their cause."""

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import checkpoint

from landscape import Checkpoint, ModelObjective, path
from landscape.objective.contract import number
from tests.problems import DOUBLE, seeded

LOSS = nn.CrossEntropyLoss()
X = torch.randn(48, 6, generator=seeded(0), dtype=DOUBLE)
Y = torch.randint(0, 3, (48,), generator=seeded(1))


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 3).double()


# --- 5: Gauss-Newton products -----------------------------------------------------------------------------------------


class _Outputs:
    def __init__(self, logits: Tensor, loss: Tensor) -> None:
        self.logits, self.loss = logits, loss


class _Carrying(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.n, self.kind = _linear(), kind

    def forward(self, x: Tensor, y: Tensor) -> Any:
        z = self.n(x)
        shown = {"softmax": z.softmax(1), "clone": z.clone(), "slice": z[:, :2], "detached": z.detach(), "own": z}
        return _Outputs(shown[self.kind], functional.cross_entropy(z, y))


@pytest.mark.parametrize("kind", ["softmax", "clone", "slice", "detached", "own"])
def test_gauss_newton_is_refused_where_the_loss_is_no_function_of_the_outputs(kind: str) -> None:
    model = _Carrying(kind)
    f = ModelObjective(model, None, (X, Y), forward=lambda m, b: m(*b))
    v = torch.ones(f.size, dtype=DOUBLE)
    if kind == "own":
        torch.testing.assert_close(f.gnvp(f.theta, v), ModelObjective(model.n, LOSS, (X, Y)).gnvp(f.theta, v))
        return
    with pytest.raises(ValueError, match=r"Gauss-Newton.*give a forward"):
        f.gnvp(f.theta, v)


def test_gauss_newton_is_refused_where_the_outputs_are_the_loss() -> None:
    class Lightning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = _linear()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return functional.cross_entropy(self.n(batch[0]), batch[1])

    def step(m: Any, b: Any) -> Tensor:
        return m.training_step(b, 0)

    model = Lightning()
    for loss, forward in (
        (None, step),
        (lambda o, b: o, step),
        (lambda o, b: 2 * o.mean(), step),
        (None, lambda m, b: step(m, b).reshape(1)),
        (lambda o, b: functional.cross_entropy(model.n(b[0]), b[1]), lambda m, b: m.n(b[0])),
    ):
        f = ModelObjective(model, loss, (X, Y), forward=forward)
        with pytest.raises(ValueError, match=r"Gauss-Newton.*give a forward"):
            f.gnvp(f.theta, torch.ones(f.size, dtype=DOUBLE))


def test_gauss_newton_of_a_loss_linear_in_many_outputs_is_zero() -> None:
    f = ModelObjective(nn.Linear(6, 1).double(), lambda o, b: o.mean(), (X, Y))
    assert not f.gnvp(f.theta, torch.ones(f.size, dtype=DOUBLE)).any()


# --- 6: tensors that closures hold ------------------------------------------------------------------------------------


class _Centred(nn.Module):
    def __init__(self, *, frozen: bool = False, view: bool = False) -> None:
        super().__init__()
        self.l = _linear()
        mean = torch.zeros(6, dtype=DOUBLE)
        if frozen:
            self.mean: Any = nn.Parameter(mean, requires_grad=False)
        else:
            self.register_buffer("mean", mean)
        held = self.mean[:] if view else self.mean
        self.pre = lambda x: x - held

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.pre(x))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_tensor_in_a_closure_is_the_checkpoint_s_along_a_path(*, frozen: bool) -> None:
    a, b = _Centred(frozen=frozen), _Centred(frozen=frozen)
    with torch.no_grad():
        b.mean.add_(2.0)
    expected = [number(LOSS(m(X), Y)) for m in (a, b)]
    f = ModelObjective(a, LOSS, (X, Y))
    f.value(f.theta)
    losses = path(f, Checkpoint.of(a), Checkpoint.of(b), [0.0, 0.5, 1.0]).loss
    assert [losses[0], losses[-1]] == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        a.mean.add_(5.0)
    assert f.value(f.theta) == pytest.approx(expected[0], rel=1e-12)


def test_a_view_in_a_closure_is_taken_where_values_are_equal_and_refused_elsewhere() -> None:
    a, b = _Centred(view=True), _Centred(view=True)
    b.mean.add_(2.0)
    f = ModelObjective(a, LOSS, (X, Y))
    assert f.value(f.theta) == pytest.approx(number(LOSS(a(X), Y)), rel=1e-12)
    with pytest.raises(ValueError, match=r"do not follow theta in mean|holds on to"):
        path(f, Checkpoint.of(a), Checkpoint.of(b), [0.0, 0.5, 1.0])


# --- 7: losses next to zero -------------------------------------------------------------------------------------------


def _tiny() -> tuple[Any, tuple[Tensor, Tensor]]:
    generator = seeded(0)
    x, t = torch.randn(48, 6, generator=generator), 1e-4 * torch.randn(48, 1, generator=generator)
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-4)
    return model, (x, t)


@pytest.mark.parametrize("size", [16, 48])
def test_a_sum_over_examples_of_small_signals_is_refused(size: int) -> None:
    model, data = _tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="it is their sum"):
        ModelObjective(model, lambda o, b: (o - b[1]).square().sum(), data, batch_size=size)
    f = ModelObjective(model, lambda o, b: (o - b[1]).square().mean(), data, batch_size=size)
    assert f.value(f.theta) == pytest.approx(number((model(data[0]) - data[1]).square().mean()), rel=1e-5)
    torch.testing.assert_close(f.theta, torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_noise_in_a_small_loss_is_refused() -> None:
    model, data = _tiny()
    with pytest.raises(ValueError, match="noise='frozen'"):
        ModelObjective(model, lambda o, b: (functional.dropout(o, 0.5) - b[1]).square().mean(), data)


def test_a_loss_that_is_small_since_all_is_right_is_taken() -> None:
    """Logits of about 20 in float32, whose differences lose all digits of so small a loss."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3, bias=False))
    with torch.no_grad():
        hidden = torch.tanh(model[0](X.float()))
        model[2].weight.copy_((torch.linalg.pinv(hidden) @ (16 * functional.one_hot(Y, 3).float())).T)
    value = number(LOSS(model(X.float()), Y))
    assert 0 < value < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f = ModelObjective(model, LOSS, (X.float(), Y), batch_size=16)
    assert f.value(f.theta) == pytest.approx(value, rel=1e-2)


# --- 10: layouts and checkpointing ------------------------------------------------------------------------------------


class _View(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.h, self.k = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.c(x).relu()
        return self.k(z.view(len(z), -1)) if x.shape[-1] == 8 else self.h(z.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:no gradient reaches k")
def test_images_of_another_size_that_cannot_have_their_channels_last() -> None:
    model = _View()
    data = [(torch.randn(24, 3, n, n, generator=seeded(n)), Y[:24]) for n in (6, 8, 10)]
    f = ModelObjective(model, LOSS, data)
    expected = sum(number(LOSS(model(x), y)) for x, y in data) / 3
    assert f.value(f.theta) == pytest.approx(expected, rel=1e-5)
    laid_out = [b[0].is_contiguous(memory_format=torch.channels_last) for b, _ in f._batches]
    assert laid_out == [True, False, True]


def test_selective_activation_checkpointing() -> None:
    class Selective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

        def forward(self, x: Tensor) -> Tensor:
            contexts = partial(checkpoint.create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
            return checkpoint.checkpoint(self.inner, x, use_reentrant=False, context_fn=contexts)

    model: Any = Selective()
    f, g = ModelObjective(model, LOSS, (X, Y)), ModelObjective(model.inner, LOSS, (X, Y))
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    for _ in range(2):
        torch.testing.assert_close(f.hvp(f.theta, v), g.hvp(g.theta, v), rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(f.gnvp(f.theta, v), g.gnvp(g.theta, v), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(f.gradient(f.theta), g.gradient(g.theta), rtol=1e-9, atol=1e-13)


# --- 11: kinks --------------------------------------------------------------------------------------------------------


def test_a_theta_on_a_kink_is_no_cause_to_warn() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    targets = torch.randn(48, 1, generator=seeded(2), dtype=DOUBLE).relu()

    def quantile(outputs: Tensor, batch: Any) -> Tensor:
        off = batch[1] - outputs
        return torch.maximum(0.9 * off, -0.1 * off).mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelObjective(model, nn.L1Loss(), (X, targets))
        ModelObjective(model, quantile, (X, targets))
        ModelObjective(model, lambda o, b: (o - b[1]).abs().mean() + o.abs().mean(), (X, targets))


# --- 12: errors -------------------------------------------------------------------------------------------------------


def test_a_later_batch_that_cannot_be_evaluated_is_named() -> None:
    for other, told in (((X.float(), Y), r"data holds torch\.float32"), ((X[:, :5], Y), r"mat1 and mat2")):
        f = ModelObjective(_linear(), LOSS, [(X, Y), (X, Y), other])
        for ask in (f.value, f.gradient, lambda t, f=f: f.hvp(t, t)):
            with pytest.raises(ValueError, match=rf"batch 2 of data \(from 0\) cannot be evaluated.*{told}"):
                ask(f.theta)


def test_examples_that_fail_by_themselves_are_told_so() -> None:
    wrong = Y.clone()
    wrong[5] = 7
    with pytest.raises(ValueError, match=r"batch 1 of data \(from 0\) cannot be evaluated.*out of bounds"):
        ModelObjective(_linear(), LOSS, [(X, Y), (X, wrong)])


def test_an_error_of_forward_within_a_product_stays_what_it_is() -> None:
    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l: Any = _linear()

        def forward(self, x: Tensor) -> Tensor:
            if float(self.l.weight.detach().norm()) > 5:
                raise RuntimeError("boom")
            return self.l(x)

    f = ModelObjective(Limited(), LOSS, (X, Y))
    f.value(f.theta)
    with pytest.raises(RuntimeError, match=r"^boom$"):
        f.hvp(100 * f.theta, f.theta)


# --- 13: results of an earlier call -----------------------------------------------------------------------------------


def test_graphs_within_forward_from_another_thread_s_numbers_are_no_earlier_call() -> None:
    """Nodes of a thread that made few before have low numbers, as those of a device's thread do."""
    import threading

    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l: Any = _linear()

        def forward(self, x: Tensor) -> Tensor:
            found: list[Tensor] = []
            on = torch.is_grad_enabled()

            def work() -> None:
                with torch.set_grad_enabled(on):
                    found.append(torch.tanh(self.l(x)))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return found[0]

    model = Threaded()
    f = ModelObjective(model, LOSS, (X, Y))
    assert f.value(f.theta) == pytest.approx(number(LOSS(torch.tanh(model.l(X)), Y)), rel=1e-12)
