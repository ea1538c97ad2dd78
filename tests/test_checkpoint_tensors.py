"""Tied, half-precision and untyped entries of checkpoints."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from landscape import Checkpoint, load_checkpoint


class _Tied(nn.Module):
    """An embedding whose matrix is the last layer's too, and that of one in between."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.inner, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.copy = nn.Linear(3, 5, bias=False)
        self.head.weight = self.copy.weight = self.embed.weight

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(i)).tanh()) + self.copy(self.embed(i))


def _loss(network: nn.Module) -> float:
    return nn.functional.cross_entropy(network(torch.arange(5)), torch.tensor([1, 0, 3, 3, 2])).item()


# --- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_tied_weights_that_are_saved_once(tmp_path, wrap):
    saved, network = _Tied(0), wrap(_Tied(1))
    save_model(saved, str(tmp_path / "m.safetensors"))
    assert len(load_file(tmp_path / "m.safetensors")) == 3
    notes = load_checkpoint(tmp_path / "m.safetensors").load_into(network)
    assert _loss(network) == _loss(saved)
    assert any("tied" in note and " from " in note for note in notes)


def test_a_tied_weight_may_have_any_of_its_names_and_a_prefix():
    saved = _Tied(0)
    for kept in ("embed", "head", "copy"):
        left = {k: v for k, v in saved.state_dict().items() if k.startswith((kept, "inner"))}
        for prefix in ("", "net."):
            network = _Tied(1)
            Checkpoint("a", {prefix + k: v for k, v in left.items()}).load_into(network)
            assert _loss(network) == _loss(saved)


def test_names_of_one_tensor_must_have_its_values():
    tensors = {**_Tied(0).state_dict(), "head.weight": torch.zeros(5, 3)}
    network = _Tied(1)
    before = _loss(network)
    with pytest.raises(ValueError, match=r"head\.weight are one tensor in the network, but have different"):
        Checkpoint("untied", tensors).load_into(network)
    assert _loss(network) == before
    diverged = {k: torch.full_like(v, float("nan")) for k, v in _Tied(0).state_dict().items()}
    assert Checkpoint("diverged", diverged).load_into(network) == ()  # NaNs are the same as NaNs


def test_aliases_may_be_names_that_are_not_expected():
    """As of ``named_parameters()``, which gives a tied tensor once."""
    saved = _Tied(0)
    expected = {k: v.detach() for k, v in saved.named_parameters()}
    aliases = {"copy.weight": "embed.weight", "head.weight": "copy.weight"}
    everything = Checkpoint("a", saved.state_dict())
    assert everything.fitted(expected, aliases=aliases)[1] == ()
    with pytest.raises(ValueError, match=r"not in the network: head\.weight, copy\.weight"):
        everything.fitted(expected)
    found, _ = Checkpoint("b", {"head.weight": torch.ones(5, 3)}).fitted(
        {"embed.weight": torch.zeros(5, 3)}, aliases=aliases
    )
    assert torch.equal(found["embed.weight"], torch.ones(5, 3))


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_keep_every_value(dtype):
    network = nn.Linear(3, 2)
    tensors = {k: v.to(dtype) for k, v in nn.Linear(3, 2).state_dict().items()}
    found, _ = Checkpoint("half", tensors).fitted(network.state_dict())
    assert found["weight"].dtype == dtype
    (note,) = Checkpoint("half", tensors).load_into(network)
    assert note == f"2 of its tensors are {str(dtype)[6:]}, the network's float32: every value is kept"
    assert network.weight.dtype == torch.float32
    assert torch.equal(network.weight, tensors["weight"].double().float())


def test_double_precision_files_are_rounded_and_that_is_told():
    network = nn.Linear(1, 1)
    tensors = {"weight": torch.tensor([[1 + 2**-30]]).double(), "bias": torch.tensor([0.1], dtype=torch.float64)}
    assert tensors["weight"].item() == 1  # float32 has lost it already
    notes = Checkpoint("double", tensors).load_into(network)
    assert [note.rpartition(": ")[2] for note in notes] == ["every value is kept", "values are rounded"]
    assert network.bias.item() == torch.tensor(0.1).item()


def test_complex_values_are_rounded_like_others():
    network = nn.Module()
    network.register_buffer("scale", torch.zeros(1, dtype=torch.complex64))
    Checkpoint("a", {"scale": torch.tensor([0.1 + 0.2j], dtype=torch.complex128)}).load_into(network)
    assert network.scale.item() == torch.tensor(0.1 + 0.2j).item()


def test_counts_that_were_made_floating_and_back():
    network = nn.BatchNorm1d(2)
    Checkpoint("a", {**network.state_dict(), "num_batches_tracked": torch.tensor(7.0)}).load_into(network)
    assert network.num_batches_tracked == torch.tensor(7)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(torch.tensor([1e9]), torch.float16), (torch.tensor([1 + 0j]), torch.float32), (torch.tensor([0.5]), torch.int64)],
)
def test_values_that_the_networks_dtype_cannot_hold_are_refused(value, dtype):
    network = nn.Module()
    network.register_buffer("scale", torch.zeros(1, dtype=dtype))
    with pytest.raises(ValueError, match=r"does not fit Module: other dtype.*scale is "):
        Checkpoint("a", {"scale": value}).load_into(network)
    assert network.scale.item() == 0


# --- what is no tensor ------------------------------------------------------------------------------------------------


class _Scaled(nn.Linear):
    """A layer that saves a dictionary besides its weights."""

    def __init__(self, extra: Any) -> None:
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


@pytest.mark.parametrize("prefix", ["", "net.", "module."])
@pytest.mark.parametrize("extra", [{"scale": [1, 2]}, torch.ones(3)])
def test_extra_states_are_kept_and_loaded(tmp_path, prefix, extra):
    saved, network = (nn.Sequential(_Scaled(x), nn.Linear(2, 2)) for x in (extra, torch.ones(1).int()))
    checkpoint = Checkpoint.of(saved)
    if isinstance(extra, dict):
        assert checkpoint.tensors["0._extra_state"] == extra
        assert checkpoint.tensors["0._extra_state"]["scale"] is not extra["scale"]
    torch.save({prefix + k: v for k, v in saved.state_dict().items()}, tmp_path / "a.pt")
    for each in (checkpoint, load_checkpoint(tmp_path / "a.pt")):
        network[0].extra = None
        each.load_into(network)
        assert str(network[0].extra) == str(extra)
        assert torch.equal(network[0].weight, saved[0].weight)


def test_extra_states_have_no_part_in_the_digest_unless_they_are_tensors():
    network = _Scaled({"a": object()})
    digest = Checkpoint("a", network.state_dict()).digest()
    assert digest == Checkpoint("b", {k: v for k, v in network.state_dict().items() if "extra" not in k}).digest()
    network.extra = torch.ones(3)
    assert digest != Checkpoint.of(network).digest()


def test_an_extra_state_that_the_network_lacks_is_ignored_and_one_that_it_needs_is_missed():
    plain, scaled = nn.Linear(2, 2), _Scaled({})
    notes = Checkpoint("a", scaled.state_dict()).load_into(plain)
    assert notes == ("what the network has not is ignored: _extra_state",)
    assert torch.equal(plain.weight, scaled.weight)
    with pytest.raises(ValueError, match="missing: _extra_state"):
        Checkpoint("b", plain.state_dict()).load_into(scaled)


def test_a_copy_is_a_copy():
    network = _Scaled({"scale": [1]})
    kept = copy.deepcopy(Checkpoint.of(network).tensors)
    checkpoint = Checkpoint.of(network)
    network.extra["scale"].append(2)
    with torch.no_grad():
        network.weight.zero_()
    assert checkpoint.tensors["_extra_state"] == kept["_extra_state"]
    assert torch.equal(checkpoint.tensors["weight"], kept["weight"])
