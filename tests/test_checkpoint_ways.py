"""Networks with ways of their own to save and to load: what is loaded is what was saved, else it is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from landscape import Checkpoint, ModelObjective
from tests.problems import seeded

X, Y = torch.randn(12, 4, generator=seeded(0)), torch.arange(12) % 3


def _base() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    nn.init.normal_(network[1].running_mean)
    return network


def objective(network: nn.Module) -> ModelObjective:
    return ModelObjective(network, nn.CrossEntropyLoss(), (X, Y))


def value(network: nn.Module) -> float:
    f = objective(network)
    return f.value(f.theta)


class Network(nn.Module):
    """One that another seed makes differ in every tensor."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = _base()
        self.build()

    def build(self) -> None:
        """Adds to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


# --- saved whole ------------------------------------------------------------------------------------------------------


def _moved(state: dict, prefix: str, source: str, target: str) -> None:
    for name in [name for name in state if name.startswith(prefix + source)]:
        state[prefix + target + name.removeprefix(prefix + source)] = state.pop(name)


class _RenamedByHooks(Network):
    def build(self) -> None:
        self.register_state_dict_post_hook(lambda m, state, prefix, _: _moved(state, prefix, "net.", "old."))
        self.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: _moved(state, prefix, "old.", "net."))


class _TakesOldNames(Network):
    def build(self) -> None:
        self._register_load_state_dict_pre_hook(lambda state, prefix, *_: _moved(state, prefix, "old.", "net."))


class _OfTheInner(Network):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.load_state_dict(*args, **kwargs)


class _Transposed(Network):
    """Its square weight is saved the other way round, under the same name."""

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "w"] = self.w.detach().t().contiguous()

    def _load_from_state_dict(self, state: dict, prefix: str, *args: Any) -> None:
        with torch.no_grad():
            self.w.copy_(state[prefix + "w"].t())

    def build(self) -> None:
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x @ self.w)


class _NewParameters(_Transposed):
    """Loading puts another Parameter in its place."""

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)

    def _load_from_state_dict(self, state: dict, prefix: str, *args: Any) -> None:
        self.w = nn.Parameter(state[prefix + "w"])


class _Assigned(Network):
    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict, assign=True)


class _Derived(Network):
    """A buffer that is not saved is calculated from what is loaded."""

    def build(self) -> None:
        self.register_buffer("mean", self.net[0].weight.detach().mean(), persistent=False)
        self.register_load_state_dict_post_hook(lambda m, _: m.mean.copy_(m.net[0].weight.detach().mean()) and None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x * (1 + self.mean))


class _Versioned(Network):
    """Takes files of its own version alone, as torchvision's MNASNet."""

    _version = 2

    def _load_from_state_dict(self, state: dict, prefix: str, metadata: dict, *args: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2, not {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *args)


class _Tagged(Network):
    """Saves an entry that is none of its tensors, and knows it."""

    def build(self) -> None:
        self.register_state_dict_post_hook(lambda m, state, prefix, _: state.update({prefix + "tag": torch.tensor(3)}))
        self.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: state.pop(prefix + "tag", None))


class _SavedInHalf(Network):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}


class _ByInstance(Network):
    """As recipes for adapters replace the method of one network."""

    def build(self) -> None:
        whole = self.state_dict
        self.state_dict = lambda *args, **kwargs: {k: v.clone() for k, v in whole(*args, **kwargs).items()}


WHOLE = [
    *(Network, _RenamedByHooks, _TakesOldNames, _OfTheInner, _Transposed, _NewParameters, _Assigned, _Derived),
    *(_Versioned, _Tagged, _SavedInHalf, _ByInstance),
]


@pytest.mark.parametrize("kind", WHOLE)
def test_the_function_at_a_checkpoint_is_that_of_the_network_it_is_of(kind):
    one, other = kind(0), kind(1)
    f = objective(one)
    before = [p.detach().clone() for p in one.parameters()]
    for network in (one, other):
        with torch.inference_mode(network is other):
            at = f.at(Checkpoint.of(network))
        assert at.value(at.theta) == value(network)
        assert at.load_notes == ()
        # f follows theta there as it does at the network itself
        own = objective(network)
        assert torch.equal(at.theta, own.theta)
        assert torch.equal(at.gradient(1.1 * at.theta), own.gradient(1.1 * own.theta))
    assert all(map(torch.equal, one.parameters(), before))
    assert f.value(f.theta) == value(one)


@pytest.mark.parametrize("kind", WHOLE)
def test_loading_leaves_the_network_its_parameters(kind):
    """An optimizer goes on with them, and the checkpoint stays what it is."""
    one, other = kind(0), kind(1)
    parameters, saved = list(one.parameters()), Checkpoint.of(other)
    digest = saved.digest()
    assert saved.load_into(one) == ()
    assert all(p is q for p, q in zip(parameters, one.parameters(), strict=True))
    assert value(one) == value(other)
    with torch.no_grad():
        parameters[0].zero_()
    assert saved.digest() == digest


# --- refused, and the network as it was -------------------------------------------------------------------------------


class _LoadsNothing(Network):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None


class _LoadsSome(Network):
    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        some = {k: v for k, v in state.items() if k != "net.3.bias"}
        return super().load_state_dict(some, strict=False)


class _SavesOtherNames(Network):
    def build(self) -> None:
        self.register_state_dict_post_hook(lambda m, state, prefix, _: _moved(state, prefix, "net.", "old."))


class _Raises(Network):
    """Where part of it is loaded already."""

    def build(self) -> None:
        def hook(module: nn.Module, keys: Any) -> None:
            raise KeyError("ema")

        self.register_load_state_dict_post_hook(hook)


class _NewModules(Network):
    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        self.net = _base()
        return super().load_state_dict(state, *args, **kwargs)


class _OtherShape(Network):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        super().load_state_dict(*args, **kwargs)
        self.net[0].bias = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (_LoadsNothing, r"is not what load_state_dict leaves in net\.0\.weight, net\.0\.bias, net\.1\.running_mean, "),
        (_LoadsSome, r"is not what load_state_dict leaves in net\.3\.bias\. "),
        (_SavesOtherNames, r"is not what load_state_dict leaves in old\.0\.weight, "),
        (_Raises, r"load_state_dict does not take it \(KeyError: 'ema'\)"),
        (_NewModules, "load_state_dict puts other modules in"),
        (_OtherShape, r"load_state_dict puts what has another shape in the place of net\.0\.bias"),
    ],
)
def test_a_network_that_does_not_load_what_it_saves_is_refused_and_unchanged(kind, told):
    one, other = kind(0), kind(1)
    f, parameters, before = objective(one), list(one.parameters()), Checkpoint.of(one).digest()
    with pytest.raises(ValueError, match=f"checkpoint 'b' does not fit {kind.__name__}: .*{told}"):
        Checkpoint.of(other, "b").load_into(one)
    assert all(p is q for p, q in zip(parameters, one.parameters(), strict=True))
    assert Checkpoint.of(one).digest() == before
    with pytest.raises(ValueError, match=f"does not fit {kind.__name__}"):
        f.at(Checkpoint.of(other))
    assert f.value(f.theta) == value(one)


def test_a_state_that_is_no_tensors_by_name_is_refused():
    class Nested(Network):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {"net": self.net.state_dict(), "epoch": 3}

    class Listed(Network):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return list(self.net.state_dict().values())

    for kind, told in ((Nested, "gives 'net' as a OrderedDict of tensors"), (Listed, "gives a list")):
        network = kind(0)
        with pytest.raises(ValueError, match=f"state_dict of {kind.__name__} {told}"):
            Checkpoint.of(network)
        with pytest.raises(ValueError, match=f"state_dict of {kind.__name__} {told}"):
            Checkpoint("a", Network(0).state_dict()).load_into(network)


# --- names of before ---------------------------------------------------------------------------------


def _normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Sequential(norm(nn.Linear(5, 3))))


class _Renaming(nn.Module):
    """By a hook, and by a method of its own in a part; with another layout of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.scale = _RenamingPart(), nn.Parameter(torch.ones(1, 3))
        self._register_load_state_dict_pre_hook(self._renamed)

    def _renamed(self, state: dict, prefix: str, *_: object) -> None:
        for name in [name for name in state if name.startswith(f"{prefix}block.")]:
            state[name.replace("block.", "part.", 1)] = state.pop(name)
        if state[f"{prefix}scale"].dim() == 1:
            state[f"{prefix}scale"] = state[f"{prefix}scale"][None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) * self.scale


class _RenamingPart(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)

    def _load_from_state_dict(self, state: dict, prefix: str, *args: object) -> None:
        if f"{prefix}kernel" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
        super()._load_from_state_dict(state, prefix, *args)


@pytest.mark.parametrize("prefix", ["", "net.", "module."])
@pytest.mark.parametrize("kind", ["weight norm", "renamed", "layout"])
def test_names_of_before_are_taken_as_the_networks_hooks_take_them(kind: str, prefix: str) -> None:
    if kind == "weight norm":
        with pytest.warns(FutureWarning, match="weight_norm"):
            saved = _normed(nn.utils.weight_norm).state_dict()
        model = _normed(nn.utils.parametrizations.weight_norm)
    elif kind == "renamed":
        saved = {"block.kernel": torch.randn(3, 4), "block.bias": torch.randn(3), "scale": torch.randn(1, 3)}
        model = _Renaming()
    else:
        saved = {"part.weight": torch.randn(3, 4), "part.bias": torch.randn(3), "scale": torch.randn(3)}
        model = _Renaming()
    saved = {name: tensor + 0.1 for name, tensor in saved.items()}
    by_torch = copy.deepcopy(model)
    by_torch.load_state_dict(saved)
    before = copy.deepcopy(model.state_dict())
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    f = ModelObjective(model, nn.CrossEntropyLoss(), (x, y))
    g = f.at(Checkpoint("old", {prefix + name: tensor for name, tensor in saved.items()}))
    assert g.value(g.theta) == pytest.approx(float(nn.CrossEntropyLoss()(by_torch(x), y).detach()), rel=1e-6)
    assert any("names of before" in told for told in g.load_notes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    Checkpoint("old", {prefix + name: tensor for name, tensor in saved.items()}).load_into(model)
    assert all(torch.equal(tensor, by_torch.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_no_hook_knows_is_refused_and_the_network_unchanged() -> None:
    model = _Renaming()
    before = copy.deepcopy(model.state_dict())
    quantised = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8)
    for tensors in (
        {"block.kernel": torch.randn(3, 4), "scale": torch.randn(3)},
        {"a.weight_g": torch.randn(3, 1)},
        {"block.kernel": torch.randn(2, 4), "block.bias": torch.randn(3), "scale": torch.randn(3)},
        {**before, "part.weight": quantised},
    ):
        with pytest.raises(ValueError, match=r"^checkpoint 'other' does not fit"):
            Checkpoint("other", tensors).load_into(model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
