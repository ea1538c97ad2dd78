"""Ways of networks and losses that the first batch, or a look at attributes, does not show."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from landscape import ModelObjective
from landscape.objective.contract import number
from tests.problems import DOUBLE, seeded, tiny_mlp, tiny_objective

LOSS = nn.CrossEntropyLoss()


def _halves(**more: tuple[Any, Any]) -> list[dict[str, Any]]:
    _, (x, y) = tiny_mlp()
    return [
        {"x": a, "y": b, **{name: values[i] for name, values in more.items()}}
        for i, (a, b) in enumerate(((x[:24], y[:24]), (x[24:], y[24:])))
    ]


def _on_labels(outputs: Tensor, batch: Any) -> Tensor:
    return functional.cross_entropy(outputs, batch["y"])


class _Domains(nn.Module):
    """A BatchNorm layer for each domain after one linear layer, or none."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.skip = nn.Linear(4, 5), nn.Linear(5, 3), skip
        self.norms = nn.ModuleList([nn.BatchNorm1d(5), nn.BatchNorm1d(5)])

    def forward(self, x: Tensor, domain: int) -> Tensor:
        h = self.first(x)
        return self.last(torch.tanh(h if self.skip and domain else self.norms[domain](h)))


@pytest.mark.filterwarnings("ignore:no gradient reaches")  # the second domain's layer
@pytest.mark.parametrize("skip", [False, True])
def test_folding_holds_for_the_batches_that_go_the_same_way_alone(skip: bool) -> None:
    model, batches = _Domains(skip).double(), _halves(d=(0, 1))
    for batch in batches:
        for _ in range(5):
            model(3 * batch["x"] + batch["d"], batch["d"])
    model.eval()
    f = ModelObjective(model, _on_labels, batches, forward=lambda net, b: net(b["x"], b["d"]))
    total = sum(len(b["x"]) * functional.cross_entropy(model(b["x"], b["d"]), b["y"]) for b in batches) / 50
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(total, list(model.parameters()), allow_unused=True) if g is not None]
    )
    for _ in range(2):
        value, found = f.value_and_gradient(f.theta)
        assert f.value(f.theta) == pytest.approx(number(total), rel=1e-12)
        assert value == pytest.approx(number(total), rel=1e-12)
        torch.testing.assert_close(found[found != 0], gradient[gradient != 0], rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:no gradient reaches")  # the layer that never runs
def test_recalibration_counts_what_each_layer_sees() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.idle, self.head = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 3)
            nn.init.constant_(self.idle.running_var, 7.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.norm(x)) - torch.tanh(self.norm(2 * x + 1)))

    model, (_, (x, y)) = Siamese().double(), tiny_mlp()
    f = ModelObjective(model, LOSS, (x, y), batch_norm="recalibrated", batch_size=50)
    mean = (x.mean(0) + (2 * x + 1).mean(0)) / 2  # over both calls
    variance = (x.var(0) + (2 * x + 1).var(0)) / 2
    normal = [(z - mean) / (variance + 1e-5).sqrt() for z in (x, 2 * x + 1)]
    expected = functional.cross_entropy(model.head(torch.tanh(normal[0]) - torch.tanh(normal[1])), y)
    assert f.value(f.theta) == pytest.approx(number(expected), rel=1e-12)
    idle = next(t for name, t in f._network.named_tensors().items() if name == "idle.running_var")
    assert idle.tolist() == [7.0] * 4


def test_values_and_gradients_of_transformers_take_the_same_way() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True), nn.Linear(4, 3)

        def forward(self, x: Tensor, padded: Tensor) -> Tensor:
            return self.head(self.body(x, src_key_padding_mask=padded).mean(1))

    x = torch.randn(24, 6, 4, generator=seeded(0), dtype=DOUBLE)
    padded = torch.zeros(24, 6, dtype=torch.bool)
    padded[18:, 4:] = True
    y = torch.arange(24) % 3
    batches = [{"x": x[i], "p": padded[i], "y": y[i]} for i in (slice(0, 12), slice(12, 24))]
    f = ModelObjective(Encoder().double(), _on_labels, batches, forward=lambda net, b: net(b["x"], b["p"]))
    assert f.value(f.theta) == pytest.approx(f.value_and_gradient(f.theta)[0], rel=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()


def test_buffers_that_move_by_way_of_data_begin_anew() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = tiny_mlp()
            self.register_buffer("scale", torch.ones((), dtype=DOUBLE))

        def forward(self, x: Tensor) -> Tensor:
            self.scale.data += 1
            return self.scale * self.inner(x)

    model, data = Counts(), tiny_mlp()[1]
    f = ModelObjective(model, LOSS, data)
    expected = number(functional.cross_entropy(2 * model.inner(data[0]), data[1]))
    assert [f.value(f.theta) for _ in range(3)] == pytest.approx([expected] * 3, rel=1e-12)
    assert float(model.scale) == 1


def test_what_is_kept_of_parameters_is_refused_or_named() -> None:
    data = tiny_mlp()[1]

    class Kept(nn.Module):
        def __init__(self, keep: Any) -> None:
            super().__init__()
            self.inner, _ = tiny_mlp()
            self.kept = keep(self.inner[0].weight)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.kept[0] if isinstance(self.kept, list) else self.kept
            return self.inner[2](torch.tanh(functional.linear(x, weight, self.inner[0].bias)))

    with pytest.raises(ValueError, match=r"do not follow theta in inner\.0\.weight: the network keeps what"):
        ModelObjective(Kept(lambda w: 2 * w), LOSS, data)
    with pytest.raises(ValueError, match="kept of the model is a view of one of its trainable parameters"):
        ModelObjective(Kept(lambda w: [w.data]), LOSS, data)
    with pytest.warns(UserWarning, match=r"no gradient reaches inner\.0\.weight from the first batch"):
        ModelObjective(Kept(lambda w: w.detach().clone()), LOSS, data)


def test_a_cache_of_parametrizations_is_not_ours() -> None:
    data = tiny_mlp()[1]
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))).double()
    f = ModelObjective(model, LOSS, data)
    elsewhere = f.value(f.theta + 0.5)
    with parametrize.cached():
        model(data[0])
        g = ModelObjective(model, LOSS, data)
        assert g.value(g.theta + 0.5) == elsewhere


def test_attributes_of_parameters_stay() -> None:
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = tiny_mlp()
            self.inner[0].weight.scale = 0.5

        def forward(self, x: Tensor) -> Tensor:
            w = self.inner[0].weight
            return self.inner[2](torch.tanh(functional.linear(x, w.scale * w, self.inner[0].bias)))

    model, data = Marked(), tiny_mlp()[1]
    f = ModelObjective(model, LOSS, data)
    assert f.value(f.theta) == pytest.approx(number(functional.cross_entropy(model(data[0]), data[1])), rel=1e-12)


class _Trainer:
    def __init__(self, teacher: nn.Module) -> None:
        self.parts = {"teacher": [teacher]}

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return functional.mse_loss(outputs, self.parts["teacher"][0](batch[0]))


@pytest.mark.parametrize("where", ["default", "method", "inner function", "list"])
def test_teachers_are_found_wherever_a_loss_has_them(where: str) -> None:
    model, data = tiny_mlp()
    teacher = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().train()
    before = copy.deepcopy(teacher.state_dict())
    teachers = [teacher]

    def helper(x: Tensor) -> Tensor:
        return teacher(x)

    loss = {
        "default": lambda z, b, t=teacher: functional.mse_loss(z, t(b[0])),
        "method": _Trainer(teacher).loss,
        "inner function": lambda z, b: functional.mse_loss(z, helper(b[0])),
        "list": lambda z, b: functional.mse_loss(z, teachers[0](b[0])),
    }[where]
    f = ModelObjective(model, loss, data)
    expected = functional.mse_loss(model(data[0]), copy.deepcopy(teacher).eval()(data[0]))
    assert f.value(f.theta) == pytest.approx(number(expected), rel=1e-12)
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def test_a_loss_of_the_users_may_call_something_else_a_reduction() -> None:
    class Dice(nn.Module):
        reduction = "sum"

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            p, t = outputs.softmax(1)[:, 1], (targets == 1).double()
            return 1 - 2 * (p * t).sum() / (p.sum() + t.sum())

    model, data = tiny_mlp()
    f = ModelObjective(model, Dice(), data, whole_batches=True)
    assert f.value(f.theta) == pytest.approx(number(Dice()(model(data[0]), data[1])), rel=1e-12)


def test_arrays_and_lists_beside_tensors_are_copied_and_never_cut() -> None:
    model, (x, y) = tiny_mlp()
    labels = np.empty(25, dtype=np.int64)

    def loader():
        for i in (0, 25):
            labels[:] = y[i : i + 25].numpy()
            yield {"x": x[i : i + 25], "y": labels, "names": [str(j) for j in range(25)]}

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        assert len(batch["names"]) == len(outputs)
        return functional.cross_entropy(outputs, torch.from_numpy(batch["y"]))

    f = ModelObjective(model, loss, loader(), forward=lambda net, b: net(b["x"]))
    g = tiny_objective()
    assert f.value(g.theta) == pytest.approx(g.value(g.theta), rel=1e-12)
    assert len(f.parts(2)) == 2
    with pytest.raises(ValueError, match="as many as there are batches"):
        f.parts(3)
    plain = [SimpleNamespace(x=x, y=y)]
    h = ModelObjective(model, lambda z, b: functional.cross_entropy(z, b.y), plain, forward=lambda net, b: net(b.x))
    y.fill_(0)
    assert h.value(g.theta) == pytest.approx(g.value(g.theta), rel=1e-12)


def test_data_that_is_neither_a_pair_nor_batches_is_refused() -> None:
    model, (x, y) = tiny_mlp()
    for data in ((x, x, y), ((x, x), y)):
        with pytest.raises(TypeError, match="no pair of tensors, and so neither a pair nor batches"):
            ModelObjective(model, LOSS, data)


def test_a_value_that_no_gradient_follows_fails_the_preflight() -> None:
    class Off(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = tiny_mlp()

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.warns(UserWarning, match="no gradient reaches"):
        f = ModelObjective(Off(), LOSS, tiny_mlp()[1])
    assert not f.preflight().passed


@pytest.mark.filterwarnings("ignore:no gradient reaches")  # the last bias
def test_products_that_torch_cannot_form_are_refused_in_our_words() -> None:
    model, (x, y) = tiny_mlp()
    f = ModelObjective(
        model,
        lambda z, b: functional.ctc_loss(
            z.log_softmax(1).expand(4, *z.shape), b[1][:, None] % 2 + 1, [4] * len(z), [1] * len(z)
        ),
        (x, y),
    )
    assert f.gradient(f.theta).isfinite().all()
    with pytest.raises(ValueError, match=r"cannot be differentiated twice.*_ctc_loss_backward"):
        f.hvp(f.theta, f.theta)
    laplacian = ModelObjective(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double(),
        lambda z, b: z.square().mean(),
        (x, y),
        forward=lambda net, b: torch.vmap(lambda p: torch.func.hessian(lambda q: net(q)[0])(p).trace())(b[0]),
    )
    v, h = torch.ones_like(laplacian.theta), 1e-6  # central differences in float64: error about h^2 + eps/h
    slopes = [laplacian.gradient(laplacian.theta + s * h * v) for s in (1, -1)]
    torch.testing.assert_close(
        laplacian.hvp(laplacian.theta, v), (slopes[0] - slopes[1]) / (2 * h), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("kind", ["ignored", "weights", "missing", "mask"])
def test_a_mean_that_few_examples_spoil_is_found(kind: str) -> None:
    model, (x, y) = tiny_mlp(examples=400)
    few = torch.tensor([37, 155, 333])
    y, mask = y.clamp(max=1), torch.ones(400, dtype=torch.bool)
    target = x[:, 0].clone()
    if kind == "ignored":
        y[few] = 255
    elif kind == "weights":
        y[few] = 2
    elif kind == "missing":
        target[few] = float("nan")
    mask[few] = False
    weight = torch.tensor([1.0, 1.0, 30.0], dtype=DOUBLE)

    def loss(z: Tensor, b: Any) -> Tensor:
        if kind == "ignored":
            return functional.cross_entropy(z, b["y"], ignore_index=255)
        if kind == "weights":
            return functional.cross_entropy(z, b["y"], weight=weight)
        known = ~b["t"].isnan() if kind == "missing" else b["m"]
        return functional.mse_loss(z[known, 0], b["t"][known])

    batches = [{"x": x[i], "y": y[i], "t": target[i], "m": mask[i]} for i in torch.arange(400).split(8)]
    with pytest.raises(ValueError, match="f would depend on how the data are cut"):
        ModelObjective(model, loss, batches, forward=lambda net, b: net(b["x"]))
