"""Products of H and G with kept graphs, over some of the parameters, and what the preflight finds."""

import gc
import weakref

import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.objective.products import CachedProducts
from tests.problems import DOUBLE, dense_hessian, seeded, tiny_mlp, tiny_objective

# float64 against float64: rounding only
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def _dense_gauss_newton(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """1/N sum_i J_i' (diag(p_i) - p_i p_i') J_i, the closed form for softmax cross-entropy."""
    inputs, _ = data
    names = [name for name, _ in model.named_parameters()]

    def outputs(*weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (inputs,))

    jacobians = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in model.parameters()))
    jacobian = torch.cat([j.flatten(2) for j in jacobians], dim=2)  # (N, classes, n)
    p = model(inputs).softmax(1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ica,icd,idb->ab", jacobian, curvature, jacobian) / len(inputs)


def _split(f_options=None, memory="auto"):
    model, (x, y) = tiny_mlp()
    batches = [(x[:20], y[:20]), (x[20:43], y[20:43]), (x[43:], y[43:])]
    return ModelObjective(model, nn.CrossEntropyLoss(), batches, graph_memory=memory, **(f_options or {}))


@pytest.mark.parametrize("memory", ["auto", 0, 20_000])
def test_kept_graphs_give_the_same_products_at_every_theta(memory):
    model, data = tiny_mlp()
    f = _split(memory=memory)
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    for theta in (f.theta, f.theta + 0.3, f.theta):
        f.metrics(f.theta - 1)  # somewhere else in between
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        h, g = dense_hessian(model, data), _dense_gauss_newton(model, data)
        for w in (v, v.flip(0), v):
            torch.testing.assert_close(f.hvp(theta, w), h @ w, **EXACT)
            torch.testing.assert_close(f.gnvp(theta, w), g @ w, **EXACT)


def test_only_the_graphs_that_fit_are_kept():
    f = _split()
    f.hvp(f.theta, torch.ones_like(f.theta))
    assert set(f._curvature.hessians._cached) == {0, 1, 2}
    first = f._curvature.hessians._cached[0]
    f.value(f.theta)
    assert f._curvature.hessians._cached[0] is first
    f.value(f.theta + 1)
    assert not f._curvature.hessians._cached
    fits = [_kept_at(memory) for memory in (0, 1_000, 6_000, 10**9)]
    assert fits[0] == fits[1] == 0
    assert 0 < fits[2] < fits[3] == 3


def _kept_at(memory: int) -> int:
    f = _split(memory=memory)
    f.hvp(f.theta, torch.ones_like(f.theta))
    return len(f._curvature.hessians._cached)


def test_a_kept_graph_is_built_once_and_let_go():
    model, (x, y) = tiny_mlp()
    calls = []

    def forward(network, batch):
        calls.append(1)
        return network(batch[0])

    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y), forward=forward)
    f.hvp(f.theta, torch.ones_like(f.theta))
    before = len(calls)
    for _ in range(5):
        f.hvp(f.theta, torch.ones_like(f.theta))
    assert len(calls) == before
    parts = weakref.ref(f._curvature.hessians)
    del f
    gc.collect()
    assert parts() is None


@pytest.mark.parametrize("batch_norm", ["frozen", "recalibrated", "batch"])
def test_kept_graphs_outlive_other_forward_passes_through_batch_norm(batch_norm):
    _, (x, y) = tiny_mlp()
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    kept, anew = (
        ModelObjective(model, nn.CrossEntropyLoss(), (x, y), batch_size=10, batch_norm=batch_norm, graph_memory=memory)
        for memory in ("auto", 0)
    )
    v = torch.ones_like(kept.theta)
    for _ in range(2):
        torch.testing.assert_close(kept.hvp(kept.theta, v), anew.hvp(anew.theta, v), **EXACT)
        torch.testing.assert_close(kept.gnvp(kept.theta, v), anew.gnvp(anew.theta, v), **EXACT)
        kept.value(kept.theta)


def test_gauss_newton_takes_outputs_with_logits_and_names_what_has_none():
    class Outputs:
        def __init__(self, logits, loss):
            self.logits, self.loss = logits, loss

    model, data = tiny_mlp()

    def forward(network, batch):
        logits = network(batch[0])
        return Outputs(logits, nn.functional.cross_entropy(logits, batch[1]))

    f = ModelObjective(model, None, data, forward=forward)
    v = torch.ones_like(f.theta)
    torch.testing.assert_close(f.gnvp(f.theta, v), tiny_objective().gnvp(f.theta, v), **EXACT)
    bare = ModelObjective(
        model, lambda outputs, batch: outputs[0], data, forward=lambda m, b: (forward(m, b).loss,), graph_memory=0
    )
    with pytest.raises(ValueError, match=r"tuple without \.logits"):
        bare.gnvp(f.theta, v)


def test_a_linear_loss_has_no_gauss_newton_matrix():
    model, data = tiny_mlp()
    f = ModelObjective(model, lambda outputs, batch: outputs.mean(), data)
    assert not f.gnvp(f.theta, torch.ones_like(f.theta)).any()
    assert f.hvp(f.theta, torch.ones_like(f.theta)).any()


def test_weight_decay_is_in_both_products():
    plain, decayed = tiny_objective(), tiny_objective(weight_decay=0.2)
    v = torch.ones_like(plain.theta)
    torch.testing.assert_close(decayed.gnvp(plain.theta, v), plain.gnvp(plain.theta, v) + 0.2 * v, **EXACT)


@pytest.mark.parametrize("quantity", ["gradient", "hvp", "gnvp"])
def test_many_batches_in_float32_lose_no_digits(quantity):
    """A sum over 2,000 batches in float32 differs from the one of a single batch by rounding of one sum only."""
    model, _ = tiny_mlp()
    model.float()
    x, y = torch.randn(2000, 4, generator=seeded(0)), torch.randint(0, 3, (2000,), generator=seeded(1))
    exact = ModelObjective(model.double(), nn.CrossEntropyLoss(), (x.double(), y))
    single = ModelObjective(model.float(), nn.CrossEntropyLoss(), (x, y), batch_size=1, graph_memory=0)
    v = [] if quantity == "gradient" else [torch.ones_like(single.theta)]
    truth, found = (
        getattr(f, quantity)(*(w.to(f.dtype) for w in (single.theta, *v))).double() for f in (exact, single)
    )
    error = (found - truth).norm() / truth.norm()
    # float32 derivatives of single examples, whose errors of some eps = 1.2e-7 are independent, and one rounding of the
    # result; summed in float32 they would be off by up to 2000 eps
    assert error < 5e-7


def test_a_product_that_is_not_finite_names_its_batch():
    model, (x, y) = tiny_mlp()
    bad = x.clone()
    bad[45] = float("nan")
    f = ModelObjective(model, nn.CrossEntropyLoss(), (bad, y), batch_size=10)
    for product in (f.hvp, f.gnvp):
        with pytest.raises(FloatingPointError, match=r"batches \[4\] of 5"):
            product(f.theta, torch.ones_like(f.theta))
    with pytest.raises(ValueError, match="v is not finite"):
        f.hvp(f.theta, f.theta * float("inf"))


def test_an_objective_over_some_layers_has_the_blocks_of_the_whole():
    f = tiny_objective(weight_decay=0.1)
    part = f.restrict("2.*")
    assert part.space.names == ("2.weight", "2.bias")
    inside = torch.arange(f.size) >= f.size - part.size
    v = torch.randn(part.size, generator=seeded(2), dtype=DOUBLE)
    whole = torch.zeros_like(f.theta)
    whole[inside] = v
    torch.testing.assert_close(part.hvp(part.theta, v), f.hvp(f.theta, whole)[inside], **EXACT)
    torch.testing.assert_close(part.gradient(part.theta), f.gradient(f.theta)[inside], **EXACT)
    assert f.restrict("*.bias").space.names == ("0.bias", "2.bias")
    assert f.restrict("0.weight", "2.bias").space.names == ("0.weight", "2.bias")
    with pytest.raises(ValueError, match=r"pattern 'conv\*' fits no parameter.*0\.weight"):
        f.restrict("conv*")


def test_an_objective_over_some_layers_is_at_the_networks_own_weights_wherever_the_whole_was_last():
    f = tiny_objective()
    before = f.restrict("2.*")
    f.value(f.theta + 1)
    after = f.restrict("2.*")
    assert torch.equal(after.theta, f.theta[-after.size :])
    assert after.value(after.theta) == before.value(before.theta)  # with the frozen weights, too


class _Idle(nn.Module):
    """A network with a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.filterwarnings("ignore:no gradient reaches")
def test_a_layer_that_is_not_used_has_derivatives_of_zero():
    _, data = tiny_mlp()
    f = ModelObjective(_Idle().double(), nn.CrossEntropyLoss(), data, batch_size=20)
    idle = f.restrict("idle.*")
    v = torch.ones_like(idle.theta)
    assert idle.value(idle.theta) == f.value(f.theta)
    for zeros in (idle.gradient(idle.theta), idle.hvp(idle.theta, v), idle.gnvp(idle.theta, v)):
        assert torch.equal(zeros, torch.zeros(idle.size, dtype=DOUBLE))
    report = idle.preflight()
    assert report.passed
    assert report.unused == ("idle.weight", "idle.bias")


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)
        self.never = nn.Parameter(torch.ones(2))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        q, k, v = self.qkv(x[:, None].expand(-1, 3, -1)).chunk(3, -1)
        return self.head(self.drop(nn.functional.scaled_dot_product_attention(q, k, v).mean(1)))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.norm, self.head = nn.LSTM(2, 3, batch_first=True), nn.BatchNorm1d(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.norm(self.lstm(x.view(-1, 2, 2))[0][:, -1]))


@pytest.mark.filterwarnings("ignore:no gradient reaches")
def test_preflight_says_what_it_found_and_checks_a_product():
    _, data = tiny_mlp()
    report = ModelObjective(_Attention().double(), nn.CrossEntropyLoss(), data).preflight()
    assert report.passed, report
    assert report.method == "forward-over-reverse"
    assert report.unused == ("never",)
    for said in ("dropout is off in 1 layers", "MATH kernel", "does not depend on never", "agrees with forward-over"):
        assert said in str(report)


@pytest.mark.parametrize("batch_norm", ["frozen", "recalibrated", "batch"])
def test_preflight_of_a_recurrent_network_with_batch_norm(batch_norm):
    _, data = tiny_mlp()
    f = ModelObjective(_Recurrent().double(), nn.CrossEntropyLoss(), data, batch_norm=batch_norm)
    report = f.preflight()
    assert report.passed, report
    assert "cuDNN is off for 1 recurrent" in str(report)
    assert f"BatchNorm is {batch_norm!r} in 1 layers" in str(report)


class _Dropping(nn.Module):
    """What drops without a Dropout module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.attend = nn.LSTM(2, 4, num_layers=2, dropout=0.3), nn.MultiheadAttention(4, 2, dropout=0.1)
        self.gru, self.head = nn.GRU(4, 3), nn.Linear(3, 3)  # the GRU drops nothing

    def forward(self, x):
        h = self.lstm(x.view(-1, 2, 2).transpose(0, 1))[0]
        return self.head(self.gru(self.attend(h, h, h)[0])[0][-1])


def test_preflight_counts_dropout_within_layers():
    _, data = tiny_mlp()
    report = ModelObjective(_Dropping().double(), nn.CrossEntropyLoss(), data).preflight()
    assert "dropout is off in 2 layers" in str(report)
    assert report.passed, report


def test_every_graph_through_a_recurrent_layer_is_built_without_cudnn():
    """Whose kernels have no gradient in evaluation mode, and would move our weights to a buffer of their own."""
    seen = []

    class Watched(_Recurrent):
        def forward(self, x):
            seen.append((torch.is_grad_enabled(), torch.backends.cudnn.enabled))
            return super().forward(x)

    _, data = tiny_mlp()
    f = ModelObjective(Watched().double(), nn.CrossEntropyLoss(), data)
    f.preflight()
    f.gradient(f.theta)
    f.value(f.theta)
    assert {on for _, on in seen} == {False}
    assert {graph for graph, _ in seen} == {False, True}
    assert torch.backends.cudnn.enabled


class _OnlyReverse(torch.autograd.Function):
    """x^2 without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


class _WrongSecond(_OnlyReverse):
    """x^2 whose backward pass hides that it depends on x."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * g


class _Applied(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.inner, self.function = nn.Linear(4, 3), function

    def forward(self, x):
        return self.function.apply(self.inner(x))


def test_preflight_falls_back_on_differences_in_float64():
    _, (x, y) = tiny_mlp()
    report = ModelObjective(_Applied(_OnlyReverse), nn.CrossEntropyLoss(), (x.float(), y)).preflight()
    assert report.method == "central differences in float64"
    assert report.passed, report


class _OnceOnly(_OnlyReverse):
    """x^2, whose second derivative torch replaces by zeros without a word where unused inputs are allowed."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


@pytest.mark.parametrize("function", [_WrongSecond, _OnceOnly])
def test_preflight_finds_a_wrong_second_derivative(function):
    _, data = tiny_mlp()
    report = ModelObjective(_Applied(function).double(), nn.CrossEntropyLoss(), data).preflight()
    assert not report.passed
    assert report.error > 0.1
    assert "DOES NOT AGREE" in str(report)


class _InPlace(nn.Linear):
    def forward(self, x):
        return super().forward(x).exp().add_(1)  # the gradient of exp needs what add_ overwrites


class _Distances(nn.Linear):
    def forward(self, x):
        return torch.cdist(super().forward(x), torch.eye(3, dtype=DOUBLE), p=1.5)


@pytest.mark.parametrize(("layer", "named"), [(_InPlace, "inplace operation"), (_Distances, "_cdist_backward")])
def test_preflight_names_what_cannot_be_differentiated(layer, named):
    _, data = tiny_mlp()
    f = ModelObjective(layer(4, 3).double(), nn.CrossEntropyLoss(), data)
    with pytest.raises(ValueError, match=f"cannot be differentiated twice.*{named}"):
        f.preflight()


def test_the_memory_kept_is_counted_without_the_weights():
    model = nn.Linear(1000, 1000)  # 4 MB of weights, one example
    f = ModelObjective(model, nn.MSELoss(), (torch.ones(1, 1000), torch.zeros(1, 1000)), graph_memory=1_000_000)
    f.hvp(f.theta, torch.ones_like(f.theta))
    assert isinstance(f._curvature.hessians, CachedProducts)
    assert len(f._curvature.hessians._cached) == 1
