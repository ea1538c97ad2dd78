"""Networks with ways of their own to save and to load: what is loaded is what was saved, else it is refused."""

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
        assert at.told == ()
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
