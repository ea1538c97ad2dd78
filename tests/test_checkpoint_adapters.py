"""Networks whose ``state_dict`` leaves out some of their tensors: these stay as they are, and that is told."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from landscape import Checkpoint, match_weights
from landscape.slices import path
from tests.test_checkpoint_ways import Network, objective, value


class _Adapted(Network):
    """A frozen network, and an adapter beside it."""

    def build(self) -> None:
        self.net.requires_grad_(False)
        self.adapter = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.adapter(x)


class _AdapterAlone(_Adapted):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if "adapter" in k}


class _TrainableAlone(_Adapted):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in trained}


class _NeverStrict(_AdapterAlone):
    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False)


class _LeftOutByHook(_Adapted):
    def build(self) -> None:
        super().build()
        self.register_state_dict_post_hook(
            lambda m, state, prefix, _: [state.pop(k) for k in list(state) if k.startswith(prefix + "net.")] and None
        )


class _MissingForgiven(_AdapterAlone):
    def build(self) -> None:
        super().build()
        self.register_load_state_dict_post_hook(lambda m, keys: keys.missing_keys.clear())


class _OwnSignature(_AdapterAlone):
    def load_state_dict(self, state: Any) -> None:  # type: ignore[override]
        self.adapter.load_state_dict({k.removeprefix("adapter."): v for k, v in state.items()})


PARTS = [_AdapterAlone, _TrainableAlone, _NeverStrict, _LeftOutByHook, _MissingForgiven, _OwnSignature]
STAYS = (
    "what the network's state_dict leaves out stays its own: net.0.weight, net.0.bias, net.1.weight, net.1.bias, "
    "net.1.running_mean and 4 more"
)


@pytest.mark.parametrize("kind", PARTS)
def test_what_a_network_leaves_out_stays_its_own_and_is_told(kind):
    one, other = kind(0), kind(1)
    both = copy.deepcopy(one)
    both.adapter = copy.deepcopy(other.adapter)
    f = objective(one)
    for saved, expected in ((one, one), (other, both)):
        at = f.at(Checkpoint.of(saved))
        assert at.value(at.theta) == value(expected)
        assert at.load_notes == (STAYS,)
    assert Checkpoint.of(other).load_into(one) == (STAYS,)
    assert value(one) == value(both)


def test_a_network_may_leave_out_what_is_trained():
    class Forgetful(_Adapted):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k != "adapter.bias"}

    one, other = Forgetful(0), Forgetful(1)
    at = objective(one).at(Checkpoint.of(other))
    assert torch.equal(at.theta, torch.cat([other.adapter.weight.detach().flatten(), one.adapter.bias.detach()]))
    assert at.load_notes == ("what the network's state_dict leaves out stays its own: adapter.bias",)


def test_the_way_between_adapters_is_that_of_their_networks():
    one, other, middle = _AdapterAlone(0), _AdapterAlone(1), _AdapterAlone(0)
    with torch.no_grad():
        for between, p, q in zip(*(n.adapter.parameters() for n in (middle, one, other)), strict=True):
            between.copy_((p + q) / 2)
    found = path(objective(one), Checkpoint.of(one), Checkpoint.of(other), [0.0, 0.5])
    assert found.loss[0] == value(one)
    assert found.loss[1] == pytest.approx(value(middle), rel=1e-6)  # the mean is rounded once


def test_hidden_units_that_a_checkpoint_does_not_hold_cannot_be_put_in_order():
    class Forgetful(nn.Sequential):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k != "0.bias"}

    def network(*order: int) -> Forgetful:
        made = Forgetful(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
        nn.Module.load_state_dict(
            made,
            {
                "0.weight": torch.tensor([[1.0], [2.0]])[list(order)],
                "0.bias": torch.tensor([3.0, 4.0])[list(order)],
                "2.weight": torch.tensor([[5.0, 6.0]])[:, list(order)],
                "2.bias": torch.zeros(1),
            },
        )
        return made

    one, other = network(0, 1), network(1, 0)
    with pytest.raises(ValueError, match=r"state_dict of Forgetful does not keep 0\.bias in another order"):
        match_weights(one, Checkpoint.of(one, "a"), Checkpoint.of(other, "b"))
