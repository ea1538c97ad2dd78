"""Batches as loaders give them and losses as people have them: f is the value that torch gives, or they are refused.

All is in float64, so that a relative tolerance of 1e-12 allows for another order of summation, and for nothing else.
"""

import copy
import random
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence

from landscape import Checkpoint, ModelObjective, line, local_entropy, plane, random_direction
from landscape.objective.contract import number
from tests.problems import DOUBLE, Quadratic, seeded, symmetric, tiny_mlp, tiny_objective

LOSS = nn.CrossEntropyLoss()
Pair = namedtuple("Pair", "image label")


@dataclass(frozen=True)
class _Sample:
    image: Tensor
    label: Tensor


class _Moves:
    """What only its own ``to`` knows how to move."""

    def __init__(self, image: Tensor, label: Tensor) -> None:
        self.image, self.label = image, label

    def to(self, device: torch.device) -> "_Moves":
        return _Moves(self.image.to(device), self.label.to(device))


def _encoding(image: Tensor, label: Tensor) -> Any:
    from transformers import BatchEncoding

    return BatchEncoding({"image": image, "label": label})


def _attribute(batch: Any, name: str) -> Tensor:
    return batch[name] if hasattr(batch, "keys") else getattr(batch, name)


@pytest.mark.parametrize(
    "make",
    [Pair, _Sample, _Moves, lambda a, b: UserDict(image=a, label=b), _encoding],
    ids=["namedtuple", "dataclass", "object", "UserDict", "BatchEncoding"],
)
def test_batches_keep_their_type(make: Callable[[Tensor, Tensor], Any]) -> None:
    model, (x, y) = tiny_mlp()
    kind = type(make(x, y))
    seen = set()

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        seen.add(type(batch))
        return functional.cross_entropy(outputs, _attribute(batch, "label"))

    batches = [make(x[:30], y[:30]), make(x[30:], y[30:])]
    f = ModelObjective(model, loss, batches, forward=lambda net, batch: net(_attribute(batch, "image")))
    g = tiny_objective()
    assert f.value(g.theta) == pytest.approx(g.value(g.theta), rel=1e-12)
    assert f.data_digest() == g.data_digest()
    parts = f.parts(3)
    assert sum(part.examples * part.value(g.theta) for part in parts) / 50 == pytest.approx(g.value(g.theta), rel=1e-12)
    assert seen == {kind}


def test_what_a_loader_refills_is_copied() -> None:
    model, (x, y) = tiny_mlp()
    buffer = {"x": torch.empty(10, 4, dtype=DOUBLE), "y": torch.empty(10, dtype=torch.long)}

    def loader():
        for start in range(0, 50, 10):
            buffer["x"].copy_(x[start : start + 10])
            buffer["y"].copy_(y[start : start + 10])
            yield buffer

    f = ModelObjective(
        model, lambda z, b: functional.cross_entropy(z, b["y"]), loader(), forward=lambda net, b: net(b["x"])
    )
    assert f.value(f.theta) == pytest.approx(tiny_objective().value(f.theta), rel=1e-12)


def test_a_forward_may_take_out_of_its_batch_and_write_into_it() -> None:
    model, (x, y) = tiny_mlp()

    def forward(net: nn.Module, batch: dict[str, Any]) -> Tensor:
        images = batch.pop("images").pop()
        batch["mask"] = images > 0
        return net(images.sub_(1.0).requires_grad_())

    def loss(outputs: Tensor, batch: dict[str, Any]) -> Tensor:
        assert set(batch) == {"y", "mask"}
        return functional.cross_entropy(outputs, batch["y"])

    kept = x.clone()
    f = ModelObjective(model, loss, [{"images": [x], "y": y}], forward=forward)
    expected = functional.cross_entropy(model(x - 1), y).item()
    assert [f.value(f.theta) for _ in range(3)] == pytest.approx([expected] * 3, rel=1e-12)
    f.hvp(f.theta, f.theta)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert "gets a copy" in str(f.preflight())


def test_inputs_alone_are_their_own_targets() -> None:
    x = torch.randn(20, 4, generator=seeded(0), dtype=DOUBLE)
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4)).double()
    expected = functional.mse_loss(model(x), x).item()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8)
    for loss, data in (
        (nn.MSELoss(), list(x.split(8))),
        (nn.MSELoss(), loader),
        (lambda z, batch: functional.mse_loss(z, batch), [x]),
        (lambda z, batch: functional.mse_loss(z, batch[0]), loader),
    ):
        f = ModelObjective(model, loss, data)
        assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)


def test_sequences_that_are_packed_weigh_what_count_says() -> None:
    sequences = [torch.randn(n, 4, generator=seeded(n), dtype=DOUBLE) for n in (5, 4, 2)]
    packed, y = pack_sequence(sequences), torch.tensor([0, 1, 2])
    model = nn.GRU(4, 3).double()

    def forward(net: nn.Module, batch: Any) -> Tensor:
        return net(batch[0])[1][0]

    with pytest.raises(ValueError, match="count= give it"):
        ModelObjective(model, LOSS, [(packed, y)], forward=forward)
    f = ModelObjective(model, LOSS, [(packed, y)], forward=forward, count=lambda batch: len(batch[1]))
    assert f.examples == 3
    assert f.value(f.theta) == pytest.approx(functional.cross_entropy(model(packed)[1][0], y).item(), rel=1e-12)
    with pytest.raises(ValueError, match="parts=2: give 1 to 1, as many as there are batches"):
        f.parts(2)


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        (LOSS, lambda x, y: [(x, x, y)], "batches of 3 items, so which of them holds the targets is not known"),
        (functional.cross_entropy, lambda x, y: [(*Pair(x, y), y)], "batches of 3 items"),
        (LOSS, lambda x, y: [{"x": x, "y": y}], "batches of type dict: give loss=lambda"),
        (None, lambda x, y: (x, y), "a single real number"),
        (lambda z, b: functional.cross_entropy(z, b[1], reduction="none"), lambda x, y: (x, y), r"shape \(50,\)"),
        (lambda z, b: 3.0, lambda x, y: (x, y), "returns a float"),
        (LOSS, lambda x, y: [(x, y[:7])], "all must begin with the number of examples"),
    ],
)
def test_what_leaves_the_loss_open_is_refused(loss: Any, data: Any, message: str) -> None:
    model, (x, y) = tiny_mlp()
    with pytest.raises(ValueError, match=message):
        ModelObjective(model, loss, data(x, y))


def test_arguments_of_another_kind_are_refused() -> None:
    model, (x, y) = tiny_mlp()
    for arguments, message in (
        ((model, "mse", (x, y)), "loss is a str"),
        ((model, LOSS, x), "data is a Tensor.*goes into a list"),
        ((model, LOSS, {"x": x}), "data is a dict"),
        ((model, LOSS, 5), "data is a int"),
    ):
        with pytest.raises(TypeError, match=message):
            ModelObjective(*arguments)
    for options, message in (
        ({"noise": True}, "noise=True"),
        ({"mode": "test"}, "mode='test'"),
        ({"dtype": torch.int32}, "dtype=torch.int32"),
        ({"count": lambda batch: "many"}, "count gives 'many'"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelObjective(model, LOSS, (x, y), **options)


# --- batches that are easily taken for something else ---------------------------------------------------


def test_a_pair_in_a_list_is_refused_and_batches_of_inputs_alone_are_taken() -> None:
    model, (x, y) = tiny_mlp()
    for data in ([x, y], [x, x[:, 0]], [x, x.float()]):
        with pytest.raises(
            TypeError, match=r"data is a list of two tensors, .*give the tuple \(x, y\), or for batches"
        ):
            ModelObjective(model, LOSS, data)
    with pytest.raises(TypeError, match=r"data is a Pair.* goes into a list"):
        ModelObjective(model, LOSS, Pair(x, y))
    with pytest.raises(ValueError, match="all must begin with the number of examples"):
        ModelObjective(model, LOSS, (x, torch.tensor(1)))
    f = ModelObjective(model, lambda z, batch: z.square().mean(), [x[:25], x[25:]])
    assert f.value(f.theta) == pytest.approx(number(model(x).square().mean().detach()), rel=1e-12)


def _collated() -> tuple[Any, Any]:
    """Batches as a DataLoader collates ``((x, z), y)``, with z twice x."""
    _, (x, y) = tiny_mlp()
    dataset = [((a, 2 * a), b) for a, b in zip(x, y, strict=True)]
    return torch.utils.data.DataLoader(dataset, batch_size=20), (x, y)


def test_a_list_of_inputs_weighs_as_its_targets_say_and_is_split() -> None:
    model, _ = tiny_mlp()
    loader, (x, y) = _collated()
    f = ModelObjective(model, LOSS, loader, forward=lambda net, batch: net(batch[0][0] + batch[0][1]))
    assert f.examples == 50
    assert f.value(f.theta) == pytest.approx(number(functional.cross_entropy(model(3 * x), y)), rel=1e-12)
    parts = f.parts(5)
    assert [part.examples for part in parts] == [10] * 5
    assert sum(part.value(f.theta) for part in parts) / 5 == pytest.approx(f.value(f.theta), rel=1e-12)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_images_is_one_example_each(kind: Callable[..., Any]) -> None:
    """Each (3, H, W) with its own H and W: 3 is the number of channels."""
    sizes = [(4, 5), (6, 3), (5, 5), (3, 7), (4, 4), (6, 6), (3, 3)]
    images = [torch.randn(3, *size, generator=seeded(i), dtype=DOUBLE) for i, size in enumerate(sizes)]
    y = torch.arange(7) % 2
    model = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Tanh()).double()

    def forward(net: nn.Module, batch: Any) -> Tensor:
        return torch.stack([net(image[None]).mean((0, 2, 3)) for image in batch[0]])

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs, torch.as_tensor(batch[1]))

    expected = pytest.approx(number(functional.cross_entropy(forward(model, (images,)), y)), rel=1e-12)
    pieces = [slice(0, 3), slice(3, 7)]  # where there are three, it is as well the number of channels
    f = ModelObjective(model, loss, [(kind(images[i]), y[i]) for i in pieces], forward=forward)
    assert f.examples == 7
    assert f.value(f.theta) == expected
    assert f.data_digest() != ModelObjective(model, loss, [(kind(images), y)], forward=forward).data_digest()
    with pytest.raises(ValueError, match="parts=3: give 1 to 2, as many as there are batches"):
        f.parts(3)
    assert sorted(part.examples for part in f.parts(2)) == [3, 4]
    alone = [(kind(images[i]), kind(y[i].tolist())) for i in pieces]
    with pytest.raises(ValueError, match=r"within lists or tuples.*count=lambda batch: len\(batch\[0\]\)"):
        ModelObjective(model, loss, alone, forward=forward)
    g = ModelObjective(model, loss, alone, forward=forward, count=lambda batch: len(batch[0]))
    assert g.value(f.theta) == expected


def test_names_of_the_examples_are_not_parted_from_them() -> None:
    """A DataLoader makes tuples of strings, which nothing takes out of."""
    model, (x, y) = tiny_mlp()
    names = tuple(str(i) for i in range(50))
    for told in (names, list(names), {"inner": {"names": list(names)}}):
        f = ModelObjective(model, lambda z, batch: functional.cross_entropy(z, batch[1]), [(x, y, told)])
        with pytest.raises(ValueError, match="as many as there are batches"):
            f.parts(2)
    f = ModelObjective(model, lambda z, batch: functional.cross_entropy(z, batch[1]), [(x, y, (28, 28))])
    assert [part.examples for part in f.parts(2)] == [25, 25]  # a size is the same for all


def test_batches_that_are_dataclasses_with_slots() -> None:
    @dataclass(frozen=True, slots=True)
    class Sample:
        image: Tensor
        label: Tensor

    model, (x, y) = tiny_mlp()
    f = ModelObjective(
        model,
        lambda z, batch: functional.cross_entropy(z, batch.label),
        [Sample(x, y)],
        forward=lambda net, batch: net(batch.image),
    )
    assert f.value(f.theta) == pytest.approx(tiny_objective().value(f.theta), rel=1e-12)
    assert f.data_digest() == tiny_objective().data_digest()


def test_what_forward_writes_into_a_packed_sequence_is_forgotten() -> None:
    packed = pack_sequence([torch.randn(n, 4, generator=seeded(n), dtype=DOUBLE) for n in (5, 4, 2)])
    model, kept = nn.GRU(4, 3).double(), packed.data.clone()

    def forward(net: nn.Module, batch: Any) -> Tensor:
        batch[0].data.mul_(2.0)
        return net(batch[0])[1][0]

    y = torch.tensor([0, 1, 2])
    f = ModelObjective(model, LOSS, [(packed, y)], forward=forward, count=lambda batch: 3)
    assert torch.equal(packed.data, kept)
    expected = functional.cross_entropy(model(packed._replace(data=2 * kept))[1][0], y)
    assert [f.value(f.theta) for _ in range(2)] == pytest.approx([number(expected)] * 2, rel=1e-12)


# --- inputs that the loss is differentiated by ----------------------------------------------------------


class _Sine(nn.Module):
    """u(x) = sin(w x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w * x)


def _squared_slope(outputs: Tensor, batch: Any) -> Tensor:
    inputs = batch if isinstance(batch, Tensor) else batch[0]
    (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
    return slope.square().mean()


@pytest.mark.parametrize("kind", ["pair", "tensors", "calculated", "inside"])
def test_inputs_that_require_a_gradient_require_it_in_every_batch(kind: str) -> None:
    """f(w) = mean of w^2 cos^2(w x), and its derivatives."""
    x = torch.randn(30, generator=seeded(0), dtype=DOUBLE).requires_grad_()
    data: Any = {
        "pair": (x, torch.zeros(30)),
        "tensors": [x[:20], x[20:]],
        "calculated": [(x * 1.0,)],
        "inside": [(x, [x, torch.zeros(30)])],
    }[kind]
    f = ModelObjective(_Sine(), _squared_slope, data, batch_size=20 if kind == "pair" else "auto")
    w, fixed = 0.9, x.detach()
    theta, v = torch.tensor([w], dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    sin, cos = torch.sin(2 * w * fixed), torch.cos(w * fixed)
    value = (w * cos).square()
    slope = 2 * w * cos.square() - w**2 * fixed * sin
    curve = 2 * cos.square() - 4 * w * fixed * sin - 2 * (w * fixed).square() * torch.cos(2 * w * fixed)
    assert f.value(theta) == pytest.approx(number(value.mean()), rel=1e-12)
    assert f.gradient(theta).item() == pytest.approx(number(slope.mean()), rel=1e-10)
    assert f.hvp(theta, v).item() == pytest.approx(number(curve.mean()), rel=1e-10)
    with torch.inference_mode():
        assert f.value(theta) == pytest.approx(number(value.mean()), rel=1e-12)
    parts = f.parts(2)
    assert sum(part.examples * part.value(theta) for part in parts) / 30 == pytest.approx(f.value(theta), rel=1e-12)
    assert f.preflight().passed
    assert x.grad is None
    assert x.is_leaf
    inputs = [batch if isinstance(batch, Tensor) else batch[0] for g in (f, *parts) for batch, _ in g._batches]
    assert all(each.requires_grad and each.is_leaf and each is not x for each in inputs)


def test_inputs_that_require_a_gradient_do_so_in_other_dtypes_and_layouts() -> None:
    x = torch.randn(30, generator=seeded(0), dtype=DOUBLE).requires_grad_()
    f = ModelObjective(_Sine().bfloat16(), _squared_slope, (x, torch.zeros(30)))
    w = f.theta.item()
    assert f.dtype is torch.float32
    # rounding of float32
    assert f.value(f.theta) == pytest.approx(number((w * torch.cos(w * x)).square().mean().detach()), rel=1e-6)
    convolution = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Flatten()).double()
    images = torch.randn(8, 3, 4, 4, generator=seeded(0), dtype=DOUBLE).requires_grad_()
    g = ModelObjective(convolution, _squared_slope, [images])
    assert g._batches[0][0].is_contiguous(memory_format=torch.channels_last)
    # the slope by each entry is the weight of its channel
    assert g.value(g.theta) == pytest.approx(number(g.theta.square().mean()), rel=1e-12)


# --- loaders, and tensors of other kinds ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shuffle", "sampler", "batch sampler"])
def test_a_loaders_own_generators_are_left_as_they_are(kind: str) -> None:
    model, (x, y) = tiny_mlp()
    dataset, own, of_sampler = torch.utils.data.TensorDataset(x, y), seeded(3), seeded(4)
    sampler = torch.utils.data.RandomSampler(dataset, generator=of_sampler)
    options: dict[str, Any] = {
        "shuffle": {"batch_size": 20, "shuffle": True},
        "sampler": {"batch_size": 20, "sampler": sampler},
        "batch sampler": {"batch_sampler": torch.utils.data.BatchSampler(sampler, 20, drop_last=False)},
    }[kind]
    loader = torch.utils.data.DataLoader(dataset, generator=own, **options)
    f = ModelObjective(model, LOSS, loader, calibration=loader)
    assert torch.equal(own.get_state(), seeded(3).get_state())
    assert torch.equal(of_sampler.get_state(), seeded(4).get_state())
    assert torch.equal(next(iter(loader))[0], f._batches[0][0][0])  # its next epoch is the one that was read
    assert f.value(f.theta) == pytest.approx(tiny_objective().value(f.theta), rel=1e-12)


class _Graph(nn.Module):
    """A x W: one step of a graph network."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3).double()

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.linear(torch.tanh(adjacency @ x))


def _adjacency(nodes: int, seed: int) -> Tensor:
    return torch.rand(nodes, nodes, generator=seeded(seed), dtype=DOUBLE).mul(2).sub(1).relu()


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("count", [None, lambda batch: len(batch[2])])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_graphs_with_sparse_adjacencies(layout: torch.layout, count: Any) -> None:
    x, y, model = torch.randn(12, 4, generator=seeded(0), dtype=DOUBLE), torch.arange(12) % 3, _Graph()
    pieces = [slice(0, 5), slice(5, 12)]
    dense = [(x[i], _adjacency(len(x[i]), 1), y[i]) for i in pieces]
    sparse = [(a, b.to_sparse(layout=layout), c) for a, b, c in dense]
    options: dict[str, Any] = {
        "loss": lambda z, batch: functional.cross_entropy(z, batch[2]),
        "forward": lambda net, batch: net(*batch[:2]),
    }
    f = ModelObjective(model, data=sparse, count=count, **options)
    g = ModelObjective(model, data=dense, whole_batches=True, **options)
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    assert f.value(f.theta) == pytest.approx(g.value(f.theta), rel=1e-12)
    torch.testing.assert_close(f.gradient(f.theta), g.gradient(f.theta), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(f.hvp(f.theta, v), g.hvp(f.theta, v), rtol=1e-10, atol=1e-12)
    assert f.preflight().passed
    assert sorted(part.examples for part in f.parts(2)) == [5, 7]
    with pytest.raises(ValueError, match="as many as there are batches"):
        f.parts(3)
    for other in (torch.sparse_coo, torch.sparse_csr):
        same = [(a, b.to_sparse(layout=other), c) for a, b, c in reversed(dense)]
        assert ModelObjective(model, data=same, count=count, **options).data_digest() == f.data_digest()
    changed = [(a, (2 * b).to_sparse(layout=layout), c) for a, b, c in dense]
    assert ModelObjective(model, data=changed, count=count, **options).data_digest() != f.data_digest()
    whole = ModelObjective(model, data=sparse, whole_batches=True, **options)
    assert whole.value(f.theta) == f.value(f.theta)


def test_sparse_inputs_in_a_pair_are_one_batch() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, generator=seeded(0), dtype=DOUBLE))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    model, (_, (x, y)) = Words(), tiny_mlp()
    f = ModelObjective(model, LOSS, (x.to_sparse(), y), batch_size=7)
    assert f.value(f.theta) == pytest.approx(number(functional.cross_entropy(model(x), y)), rel=1e-12)
    assert len(f.per_example(f.theta).loss) == 50
    with pytest.raises(ValueError, match="all must begin with the number of examples"):
        ModelObjective(model, LOSS, (x.to_sparse(), y[:7]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda x: torch.nested.nested_tensor(list(x)), TypeError, "data holds a nested tensor.*to_padded_tensor"),
        (
            lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
            TypeError,
            "data holds a nested tensor.*to_padded_tensor",
        ),
        (lambda x: x.to("meta"), ValueError, r"data holds a tensor of shape \(50, 4\) on the meta device"),
        (lambda x: x.float().to_mkldnn(), TypeError, r"data holds a tensor of layout torch._mkldnn.*to_dense\(\)"),
    ],
    ids=["nested", "jagged", "meta", "mkldnn"],
)
def test_tensors_that_cannot_be_kept_are_refused(make: Any, kind: type[Exception], message: str) -> None:
    model, (x, y) = tiny_mlp()
    for data in ((make(x), y), [(make(x), y)], [{"x": [make(x)], "y": y}], [make(x), make(x)]):
        for options in ({}, {"count": lambda batch: 50}):
            with pytest.raises(kind, match=message):
                ModelObjective(model, LOSS, data, **options)


# --- f is a mean over examples -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "criterion",
    [
        nn.BCEWithLogitsLoss(weight=torch.tensor([0.5, 1.0, 4.0])),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 1.0, 4.0])),
        nn.MultiLabelSoftMarginLoss(weight=torch.tensor([0.5, 1.0, 4.0])),
        nn.HuberLoss(),
        functional.l1_loss,
        partial(functional.smooth_l1_loss, beta=0.3),
        nn.MSELoss().forward,
    ],
)
def test_criteria_that_are_means_are_taken(criterion: Callable[..., Tensor]) -> None:
    model, (x, _) = tiny_mlp()
    targets = (x[:, :3] > 0).double()
    f = ModelObjective(model, criterion, (x, targets), batch_size=7)
    expected = number(criterion(model(x), targets).detach())
    assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)
    found = f.per_example(f.theta)
    assert found.loss @ found.counts / found.counts.sum() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("criterion", "targets"),
    [
        (nn.MSELoss(reduction="sum"), "float"),
        (partial(functional.mse_loss, reduction="sum"), "float"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 9.0]).double(), reduction="sum"), "class"),
        (nn.CrossEntropyLoss(ignore_index=1, reduction="sum"), "class"),
    ],
)
def test_sums_are_divided_by_the_number_of_examples(criterion: Callable[..., Tensor], targets: str) -> None:
    model, (x, y) = tiny_mlp()
    y = y if targets == "class" else x[:, :3]
    f = ModelObjective(model, criterion, (x, y), batch_size=7)
    assert f.value(f.theta) == pytest.approx(number(criterion(model(x), y).detach()) / 50, rel=1e-12)
    found = f.per_example(f.theta)
    assert len(found.loss) == 50
    assert found.loss.mean() == pytest.approx(f.value(f.theta), rel=1e-12)
    assert "divided by the number of examples" in str(f.preflight())


def test_a_mean_over_tokens_is_refused_wherever_the_padding_is_and_right_with_count() -> None:
    model, (x, y) = tiny_mlp()
    ignored = y.clone()
    ignored[47] = -100  # in the last batch alone

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs, batch[1])

    batches = list(zip(x.split(10), ignored.split(10), strict=True))
    with pytest.raises(ValueError, match=r"count=lambda batch.*whole_batches=True"):
        ModelObjective(model, loss, batches)
    with pytest.raises(ValueError, match="hold the loss's ignore_index=-100"):
        ModelObjective(model, partial(functional.cross_entropy, label_smoothing=0.1), batches)
    for criterion in (loss, LOSS):
        f = ModelObjective(model, criterion, batches, count=lambda batch: (batch[1] != -100).sum())
        assert f.examples == 49
        assert f.value(f.theta) == pytest.approx(number(functional.cross_entropy(model(x), ignored)), rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, b: z.var(),
        lambda z, b: functional.cross_entropy(z, b[1]).sqrt(),
        lambda z, b: 1 - 2 * (z.sigmoid()[:, 0] * (b[1] == 0)).sum() / (z.sigmoid()[:, 0].sum() + (b[1] == 0).sum()),
        lambda z, b: functional.triplet_margin_loss(z, z.roll(1, 0), z.roll(2, 0)),
    ],
    ids=["variance", "root", "dice", "triplets"],
)
def test_losses_of_a_batch_as_such_belong_to_their_batches(loss: Callable[..., Tensor]) -> None:
    model, (x, y) = tiny_mlp()
    with pytest.raises(ValueError, match="f would depend on how the data are cut"):
        ModelObjective(model, loss, (x, y))
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    f = ModelObjective(model, loss, batches, whole_batches=True)
    first, second = (number(loss(model(a), (a, b)).detach()) for a, b in batches)
    assert f.value(f.theta) == pytest.approx((30 * first + 20 * second) / 50, rel=1e-12)
    found = sorted(part.value(f.theta) for part in f.parts(2))
    assert found == pytest.approx(sorted((first, second)), rel=1e-12)
    assert "f is defined on these 2 batches" in str(f.preflight())
    whole = ModelObjective(model, loss, (x, y), whole_batches=True)
    assert whole.value(f.theta) == pytest.approx(number(loss(model(x), (x, y)).detach()), rel=1e-12)


def test_a_sum_of_the_users_is_told_to_be_one() -> None:
    model, data = tiny_mlp()
    with pytest.raises(ValueError, match="it is their sum, so divide it by the number"):
        ModelObjective(model, lambda z, b: functional.cross_entropy(z, b[1], reduction="sum"), data)


def test_a_network_that_takes_one_size_of_batch_only() -> None:
    _, (x, y) = tiny_mlp()
    model = nn.Sequential(nn.Linear(4, 3), nn.Unflatten(0, (2, 25)), nn.Flatten(0, 1)).double()
    with pytest.raises(ValueError, match="cannot be evaluated without the others"):
        ModelObjective(model, LOSS, (x, y))
    f = ModelObjective(model, LOSS, (x, y), whole_batches=True)
    assert f.value(f.theta) == pytest.approx(number(functional.cross_entropy(model(x), y)), rel=1e-12)


# --- f is a function -----------------------------------------------------------------------------------


def _noisy(draw: Callable[[Tensor], Tensor]) -> nn.Module:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = tiny_mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(draw(x))

    return Noisy()


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: functional.dropout(x, 0.3),
        lambda x: x + torch.randn_like(x),
        lambda x: x * random.random(),
        lambda x: x * np.random.rand(),  # noqa: NPY002
    ],
    ids=["dropout", "normal", "Python", "NumPy"],
)
def test_random_networks_are_refused_or_frozen(draw: Callable[[Tensor], Tensor]) -> None:
    _, data = tiny_mlp()
    with pytest.raises(ValueError, match=r"draws random numbers.*noise='frozen'"):
        ModelObjective(_noisy(draw), LOSS, data)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    f = ModelObjective(_noisy(draw), LOSS, data, batch_size=20, noise="frozen")
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    assert f.value(f.theta) == f.value(f.theta) == pytest.approx(f.value_and_gradient(f.theta)[0], rel=1e-14)
    h = 1e-6  # central differences of gradients in float64: error about h^2 + eps/h
    difference = (f.gradient(f.theta + h * v) - f.gradient(f.theta - h * v)) / (2 * h)
    torch.testing.assert_close(f.hvp(f.theta, v), difference, rtol=1e-6, atol=1e-8)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert "random numbers are the same at every evaluation" in str(f.preflight())


def test_state_that_is_not_ours_to_freeze_is_refused() -> None:
    model, data = tiny_mlp()
    calls = []

    def forward(net: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return net(batch[0]) * len(calls)

    with pytest.raises(ValueError, match="though noise='frozen'"):
        ModelObjective(model, LOSS, data, forward=forward, noise="frozen")


# --- losses --------------------------------------------------------------------------------------------


def test_modules_that_a_loss_refers_to_are_owned_too() -> None:
    """A teacher in training mode: its statistics do not move, its dropout is off, its weights are fixed."""
    model, data = tiny_mlp()
    teacher = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double().train()
    before = copy.deepcopy(teacher.state_dict())
    expected = functional.mse_loss(model(data[0]), copy.deepcopy(teacher).eval()(data[0]))
    for batch_norm in ("batch", "recalibrated", "frozen"):  # which is the network's alone
        f = ModelObjective(
            model, lambda z, batch: functional.mse_loss(z, teacher(batch[0])), data, batch_norm=batch_norm
        )
        assert f.value(f.theta) == pytest.approx(number(expected), rel=1e-12)
    f.hvp(f.theta, f.theta)
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())
    assert teacher.training
    assert "21 parameters of the loss" in str(f.preflight())


def test_a_penalty_on_the_networks_own_weights_follows_theta() -> None:
    model, data = tiny_mlp()
    f = ModelObjective(
        model,
        lambda z, b: functional.cross_entropy(z, b[1]) + 0.05 * sum(p.square().sum() for p in model.parameters()),
        data,
    )
    g = tiny_objective(weight_decay=0.1)
    theta = g.theta + 0.2
    assert f.value(theta) == pytest.approx(g.value(theta), rel=1e-12)
    torch.testing.assert_close(f.hvp(theta, theta), g.hvp(theta, theta), rtol=1e-10, atol=1e-12)


def test_a_gradient_penalty_works_in_values_slices_and_local_entropy() -> None:
    model, (x, y) = tiny_mlp()

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        inputs = batch[0].requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
        return functional.cross_entropy(outputs, batch[1]) + slope.square().sum(1).mean()

    expected = number(loss(model(x), (x.clone(), y)))
    f = ModelObjective(model, loss, (x, y), batch_size=20)
    assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)
    assert f.metrics(f.theta)["loss"] == pytest.approx(expected, rel=1e-12)
    with torch.inference_mode():
        assert f.value(f.theta) == pytest.approx(expected, rel=1e-12)
    d = random_direction(f, f.theta, generator=seeded(0))
    assert line(f, f.theta, d, [0.0]).loss[0] == pytest.approx(expected, rel=1e-12)
    assert plane(f, f.theta, d, d.flip(0), [0.0], [0.0]).loss[0, 0] == pytest.approx(expected, rel=1e-12)
    local_entropy(f, f.theta, radius=0.02, method="monte_carlo", generator=seeded(1))
    assert f.preflight().passed


def test_losses_that_exist_in_training_mode_only() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double()

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            z = self.body(functional.dropout(x, 0.2, training=self.training))
            return {"loss": functional.cross_entropy(z, labels)} if self.training else z

    model, (_, (x, y)) = Detector(), tiny_mlp()
    batch = {"x": x, "labels": y}
    with pytest.raises(ValueError, match="a single real number"):
        ModelObjective(model, None, [batch])
    f = ModelObjective(model, None, [batch], mode="train")
    expected = functional.cross_entropy(copy.deepcopy(model).eval()(**batch), y)
    assert f.value(f.theta) == pytest.approx(number(expected), rel=1e-12)
    assert f.preflight().passed
    batched = ModelObjective(model, None, [batch], mode="train", batch_norm="batch")
    body = copy.deepcopy(model.body).train()
    body[2].eval()
    assert batched.value(f.theta) == pytest.approx(number(functional.cross_entropy(body(x), y)), rel=1e-12)


def test_an_objective_whose_values_are_tensors() -> None:
    class Tensors(Quadratic):
        def value_and_gradient(self, theta: Tensor) -> Any:
            value, gradient = super().value_and_gradient(theta)
            return torch.tensor(value, dtype=DOUBLE, requires_grad=True), gradient

    from landscape.sharpness import average_case, sam

    plain, f = (kind(symmetric([3.0, 1.0]), torch.zeros(2, dtype=DOUBLE)) for kind in (Quadratic, Tensors))
    theta = torch.ones(2, dtype=DOUBLE)
    for measure in (
        lambda g: line(g, theta, theta, [0.0, 1.0]).loss[1],
        lambda g: local_entropy(g, theta, radius=0.1, method="monte_carlo", generator=seeded(0)).value,
        lambda g: local_entropy(g, theta, radius=0.1, method="smc", budget=20_000, generator=seeded(0)).value,
        lambda g: sam(g, theta).value,
        lambda g: average_case(g, theta, rho=0.1, generator=seeded(0)).value,
    ):
        assert float(measure(f)) == float(measure(plain))


# --- parameters ----------------------------------------------------------------------------------------


def _embedding(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4, **options), nn.Flatten(), nn.Tanh(), nn.Linear(8, 3)).double()


def _tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 9, (50, 2), generator=seeded(3)), tiny_mlp()[1][1]


def _is_differentiated_rightly(f: ModelObjective) -> None:
    v = torch.randn(f.size, generator=seeded(1), dtype=DOUBLE)
    h = 1e-6  # central differences in float64: error about h^2 + eps/h
    slope = (f.value(f.theta + h * v) - f.value(f.theta - h * v)) / (2 * h)
    assert slope == pytest.approx(float(f.gradient(f.theta) @ v), rel=1e-6, abs=1e-8)
    curve = (f.gradient(f.theta + h * v) - f.gradient(f.theta - h * v)) / (2 * h)
    torch.testing.assert_close(f.hvp(f.theta, v), curve, rtol=1e-6, atol=1e-8)
    report = f.preflight()
    assert report.passed, report


@pytest.mark.parametrize("options", [{"sparse": True}, {"scale_grad_by_freq": True}])
def test_embeddings_have_the_gradients_of_f(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    f = ModelObjective(_embedding(**options), LOSS, _tokens())
    torch.manual_seed(0)
    g = ModelObjective(_embedding(), LOSS, _tokens())
    torch.testing.assert_close(f.gradient(g.theta), g.gradient(g.theta), rtol=1e-12, atol=1e-14)
    _is_differentiated_rightly(f)


def test_rows_of_a_padding_index_are_held_fixed_everywhere() -> None:
    model = _embedding(padding_idx=2)
    with torch.no_grad():
        model[0].weight[2] = 0.7  # where it matters
    f = ModelObjective(model, LOSS, _tokens())
    assert f.fixed_entries.tolist() == [8, 9, 10, 11]
    _is_differentiated_rightly(f)
    assert "row 2 of 0.weight, its padding_idx, is kept fixed" in str(f.preflight())
    d = random_direction(f, f.theta, normalization="none", generator=seeded(0))
    assert not d[f.fixed_entries].any()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[2] = -0.7
    there = f.at(Checkpoint.of(other))
    assert there.value(there.theta) != f.value(f.theta)  # it is the checkpoint's own
    inside = f.restrict("0.*")
    assert inside.fixed_entries.tolist() == [8, 9, 10, 11]
    assert f.restrict("3.*").fixed_entries.tolist() == []


def test_a_padded_row_that_is_used_elsewhere_has_its_whole_gradient() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 9, bias=False)
            self.head.weight = self.words.weight
            nn.init.normal_(self.words.weight, std=0.5, generator=seeded(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.words(x)).mean(1))

    x, _ = _tokens()
    f = ModelObjective(Tied().double(), LOSS, (x, torch.arange(50) % 9))
    assert len(f.fixed_entries) == 0
    _is_differentiated_rightly(f)


@pytest.mark.parametrize(
    "normalise", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["hook", "parametrization"]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_scales_of_weight_normalisation_are_left_alone_by_filter_normalisation(normalise: Any) -> None:
    _, data = tiny_mlp()
    model = nn.Sequential(normalise(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)).double()
    f = ModelObjective(model, LOSS, data)
    d = f.space.views(random_direction(f, f.theta, generator=seeded(0)))
    (scales,) = (name for name in d if name.endswith(("weight_g", "original0")))
    (rows,) = (name for name in d if name.endswith(("weight_v", "original1")))
    assert not d[scales].any()
    torch.testing.assert_close(d[rows].norm(dim=1), f.space.views(f.theta)[rows].norm(dim=1))


def _spectrally_normalised(hook: bool) -> tuple[nn.Module, Any]:
    normalise = nn.utils.spectral_norm if hook else nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    normalise(model[0])
    x, y = torch.randn(20, 2, 4, generator=seeded(0), dtype=DOUBLE), torch.arange(20) % 3
    for _ in range(100):
        model(x)
    return model.eval(), (x, y)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("hook", [True, False])
def test_spectral_normalisation_is_found_again_between_networks(hook: bool) -> None:
    from landscape import barrier, path

    torch.manual_seed(0)
    a, data = _spectrally_normalised(hook)
    torch.manual_seed(1)
    b, _ = _spectrally_normalised(hook)
    f = ModelObjective(a, LOSS, data)
    _is_differentiated_rightly(f)
    ends = Checkpoint.of(a, "a"), Checkpoint.of(b, "b")
    raw = next(name for name in ends[0].tensors if name.endswith(("weight_orig", "weight.original")))
    mean = {k: (t + ends[1].tensors[k]) / 2 for k, t in ends[0].tensors.items()}
    weight = mean[raw] / torch.linalg.matrix_norm(mean[raw].flatten(1), 2)
    hidden = torch.tanh(functional.conv1d(data[0], weight, mean["0.bias"])).flatten(1)
    expected = functional.cross_entropy(hidden @ mean["3.weight"].T + mean["3.bias"], data[1])
    # rounding of the Gram matrix's eigenvector
    assert path(f, *ends, [0.0, 0.5, 1.0]).loss[1] == pytest.approx(number(expected), rel=1e-9)
    recalibrated = ModelObjective(a, LOSS, data, batch_norm="recalibrated")
    middle = (f.theta + f.at(ends[1]).theta) / 2
    assert recalibrated.value(middle) == pytest.approx(number(expected), rel=1e-9)
    assert barrier(f, *ends, points=3).values[1] == pytest.approx(number(expected), rel=1e-9)
    assert "vectors of spectral normalisation are kept" in str(f.preflight())


class _Forgets(nn.Module):
    """Whose gradient is not that of its value."""

    def __init__(self, forget: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, _ = tiny_mlp()
        self.forget = forget

    def forward(self, x: Tensor) -> Tensor:
        weight = self.forget(self.inner[0].weight)
        return self.inner[2](torch.tanh(functional.linear(x, weight, self.inner[0].bias)))


@pytest.mark.filterwarnings("ignore:no gradient reaches")
@pytest.mark.parametrize(
    "forget",
    [lambda w: w.detach(), lambda w: w + w.detach(), lambda w: 2 * w - w.detach()],
    ids=["all", "half", "twice"],
)
def test_preflight_finds_a_gradient_that_is_none(forget: Callable[[Tensor], Tensor]) -> None:
    _, data = tiny_mlp()
    report = ModelObjective(_Forgets(forget), LOSS, data).preflight()
    assert not report.passed
    assert report.gradient_error > 0.05
    assert "THE GRADIENT IS NOT THE DERIVATIVE" in str(report)


def test_preflight_knows_what_its_difference_is_worth() -> None:
    """A network in float64 that rounds to float32 within, by an operation without a forward derivative."""

    class Single(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.float().tanh().double()

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return slope * (1 - x.float().tanh().double() ** 2)

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Single.apply(x)

    model, data = tiny_mlp()
    model[1] = Inner()
    report = ModelObjective(model, LOSS, data).preflight()
    assert report.passed, report
    assert 1e-6 < report.tolerance <= 1e-2
    assert "known to" in report.method
    coarse = ModelObjective(tiny_mlp()[0], LOSS, data, dtype=torch.bfloat16)
    assert coarse.preflight().tolerance <= 1e-2


def test_construction_costs_at_most_ten_evaluations_of_a_micro_batch() -> None:
    rows = []

    class Counted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return super().forward(x)

    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    x, y = torch.randn(600, 3, 6, 6, generator=seeded(0)), torch.arange(600) % 3
    f = ModelObjective(Counted(*body), LOSS, (x, y), batch_size=100)
    assert f._evaluation.folds  # with all that is tried there
    assert sum(rows) <= 10 * 100
    rows.clear()
    f.at(Checkpoint.of(Counted(*body)))
    f.parts(3)
    f.restrict("4.*")
    assert not rows
