"""Names that wrappers and trainers have changed: each checkpoint gives the values of the network that was saved."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from landscape import Checkpoint, load_checkpoint
from landscape.checkpoints import unwrapped


def _conv(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    return nn.Sequential(OrderedDict(body=nn.Conv2d(1, 3, 2), norm=nn.BatchNorm2d(3), head=head))


def _outputs(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.linspace(-1, 1, 18).reshape(2, 1, 3, 3))


def _loaded(tensors: dict, network: nn.Module) -> tuple[str, ...]:
    """Loads them into the network, which then is ``_conv()`` up to its wrappers."""
    notes = Checkpoint("saved", tensors).load_into(network)
    assert torch.equal(_outputs(network), _outputs(_conv()))
    return notes


def _under(prefix: str, network: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


class _Compiled(nn.Module):
    """A part wrapped as torch.compile wraps it, without its compiler."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._orig_mod = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._orig_mod(x)


# --- one prefix -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["net.", "model.", "module.", "_orig_mod.", "encoder.backbone.", "model._orig_mod."])
def test_any_one_prefix_is_taken_off_and_told(prefix):
    notes = _loaded(_under(prefix, _conv()), _conv(1))
    assert prefix.split(".")[0] in " ".join(notes)


def test_what_a_trainer_holds_beside_the_network_is_ignored_and_told():
    beside = {"criterion.weight": torch.ones(2), "val_acc.total": torch.tensor(3), "temperature": torch.ones(())}
    notes = _loaded({**_under("net.", _conv()), **beside}, _conv(1))
    assert notes[0] == "the prefix 'net.' of its names is taken off"
    assert all(name in notes[1] for name in beside)


def test_what_is_within_the_prefix_belongs_to_the_network():
    tensors = {**_under("net.", _conv()), "net.gate": torch.ones(1), "loss.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"prefix 'net\.' taken off.*not in the network: net\.gate\. Give"):
        Checkpoint("gated", tensors).load_into(_conv())


@pytest.mark.parametrize("prefixes", [("student.", "teacher."), ("model.", "ema_model."), ("", "ema.")])
def test_two_networks_of_one_form_are_refused_by_name(prefixes):
    network = _conv(2)
    before = Checkpoint.of(network).digest()
    tensors = {k: v for seed, p in enumerate(prefixes) for k, v in _under(p, _conv(seed)).items()}
    with pytest.raises(ValueError, match=r"more than one prefix.*save the part") as error:
        Checkpoint("both", tensors).load_into(network)
    assert all((repr(prefix) if prefix else "none") in str(error.value) for prefix in prefixes)
    assert Checkpoint.of(network).digest() == before


def test_a_second_network_is_not_passed_over_for_having_a_part_more():
    tensors = {**_under("teacher.", _conv(0)), "teacher.gate": torch.ones(1), **_under("student.", _conv(1))}
    with pytest.raises(ValueError, match=r"'student\.', 'teacher\.'"):
        Checkpoint("both", tensors).load_into(_conv())


def test_one_network_under_two_prefixes_is_one():
    _loaded({**_under("model.net.", _conv()), **_under("net.", _conv())}, _conv(1))


def test_a_prefix_may_hold_a_tensor_of_the_name_in_another_shape():
    bigger = {"teacher." + k: v for k, v in nn.Sequential(OrderedDict(body=nn.Conv2d(1, 5, 2))).state_dict().items()}
    _loaded({**_under("student.", _conv()), **bigger}, _conv(1))


def test_a_network_whose_names_have_a_prefix_that_the_file_lacks():
    (note,) = _loaded(_under("", _conv()), nn.Sequential(OrderedDict(trunk=_conv(1))))
    assert "'trunk.'" in note


def test_a_prefix_that_part_of_the_networks_names_have():
    """As a base model's file in a network with a head: only the base's names have its prefix."""
    whole = nn.Sequential(OrderedDict(base=_conv(1), top=nn.Linear(2, 2)))
    top = nn.Linear(2, 2)
    tensors = {**_under("", _conv()), **_under("top.", top)}
    assert "'base.'" in Checkpoint("base", tensors).load_into(whole)[0]
    assert torch.equal(_outputs(whole.base), _outputs(_conv()))
    assert torch.equal(whole.top.weight, top.weight)
    with pytest.raises(ValueError, match=r"missing: top\.weight, top\.bias"):
        Checkpoint("base", _under("", _conv())).load_into(whole)


def test_one_entry_is_never_two_of_the_networks_tensors():
    network = nn.Module()
    network.inner, network.weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"missing: inner\.weight"):
        Checkpoint("one", {"weight": torch.ones(2, 2)}).load_into(network)


# --- wrappers within names --------------------------------------------------------------------------------------------


def _wrapped_within(wrap) -> nn.Module:
    network = _conv(1)
    network.body = wrap(network.body)
    return network


@pytest.mark.parametrize("wrap", [_Compiled, nn.DataParallel, lambda part: _Compiled(nn.DataParallel(part))])
def test_wrappers_of_parts_are_passed_over_in_the_file_and_in_the_network(wrap):
    saved = _conv()
    saved.body = wrap(saved.body)
    for network in (_conv(1), _wrapped_within(wrap), nn.DataParallel(_conv(1)), _wrapped_within(_Compiled)):
        _loaded(saved.state_dict(), network)
        _loaded(_under("net.", saved), network)
    (note,) = _loaded(saved.state_dict(), _conv(1))
    assert "wrappers add" in note
    (note,) = _loaded(_conv().state_dict(), _wrapped_within(wrap))
    assert "wrappers add" in note
    assert _loaded(saved.state_dict(), _wrapped_within(wrap)) == ()


@pytest.mark.parametrize("where", ["module", "first.module", "module.module"])
def test_a_network_whose_own_child_is_called_module_makes_its_round_trip(tmp_path, where):
    def build(seed: int) -> nn.Module:
        network = _conv(seed)
        for part in reversed(where.split(".")):
            network = nn.Sequential(OrderedDict([(part, network)]))
        return network

    torch.save(build(0).state_dict(), tmp_path / "a.pt")
    network = build(1)
    load_checkpoint(tmp_path / "a.pt").load_into(network)
    assert torch.equal(_outputs(network), _outputs(_conv()))
    assert _loaded(build(0).state_dict(), build(1)) == ()


def test_names_that_only_a_wrapper_tells_apart_stay_apart():
    network = nn.Module()
    network.module, network.weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.zeros(2, 2))
    saved = {"weight": torch.full((2, 2), 3.0), "module.weight": torch.full((2, 2), 4.0)}
    assert Checkpoint("two", saved).load_into(network) == ()
    assert torch.equal(network.weight, saved["weight"])
    assert torch.equal(network.module.weight, saved["module.weight"])


def test_unwrapped_is_for_whole_networks_only():
    assert unwrapped({"module._orig_mod.a": 1, "module._orig_mod.b": 2}) == {"a": 1, "b": 2}
    assert unwrapped({"a._orig_mod.w": 1, "b.module.w": 2}) == {"a._orig_mod.w": 1, "b.module.w": 2}


def _without_counts(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        *(("", wrap) for wrap in (lambda m: m, nn.DataParallel, lambda m: nn.Sequential(OrderedDict(trunk=m)))),
        *(("net.", wrap) for wrap in (lambda m: m, nn.DataParallel)),
        ("module.", lambda m: m),
    ],
)
def test_files_without_counts_of_batches_leave_the_networks_own(prefix, wrap):
    """As those of PyTorch before 0.4.1, and what other frameworks' weights are converted to."""
    network = wrap(_conv(1))
    (own,) = (buffer for name, buffer in network.named_buffers() if name.endswith("num_batches_tracked"))
    own.fill_(7)
    notes = _loaded(_without_counts(_under(prefix, _conv())), network)
    assert own.item() == 7
    name = next(name for name in network.state_dict() if name.endswith("num_batches_tracked"))
    assert [note for note in notes if "num_batches_tracked" in note] == [
        f"counts of batches that it lacks stay the network's own: {name.removeprefix('module.')}"
    ]


def test_counts_are_told_in_one_sentence_and_all_else_that_is_missing_is_refused():
    deep = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(9)))
    notes = Checkpoint("old", _without_counts(deep.state_dict())).load_into(deep)
    assert [note.partition(": ")[2] for note in notes] == [
        "0.num_batches_tracked, 1.num_batches_tracked, 2.num_batches_tracked, 3.num_batches_tracked, "
        "4.num_batches_tracked and 4 more"
    ]
    some = {name: tensor for name, tensor in deep.state_dict().items() if name != "3.num_batches_tracked"}
    (note,) = Checkpoint("some", some).load_into(deep)
    assert note.endswith("own: 3.num_batches_tracked")
    del some["4.running_var"]
    with pytest.raises(ValueError, match=r"fit Sequential: missing: 4\.running_var\. Give"):
        Checkpoint("less", some).load_into(deep)


def test_of_two_networks_one_may_be_saved_without_counts():
    """As running averages of parameters and statistics are."""
    tensors = {**_under("model.", _conv(0)), **_without_counts(_under("ema.", _conv(1)))}
    with pytest.raises(ValueError, match=r"more than one prefix \('model\.', 'ema\.'\)"):
        Checkpoint("both", tensors).load_into(_conv(2))
    network = _conv(1)
    counted = _conv()
    counted.norm.num_batches_tracked.fill_(5)
    _loaded({**_without_counts(_under("ema.", counted)), **_under("model.", counted)}, network)
    assert network.norm.num_batches_tracked.item() == 5


def test_averaged_weights_lose_their_counter(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(_conv())
    averaged.update_parameters(_conv())
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    notes = _loaded(load_checkpoint(tmp_path / "swa.pt").tensors, _conv(1))
    assert any("n_averaged" in note for note in notes)
    again = torch.optim.swa_utils.AveragedModel(_conv(1))
    assert load_checkpoint(tmp_path / "swa.pt").load_into(again) == ()
    assert int(again.n_averaged) == 1


def test_fitted_gives_the_networks_names_and_the_checkpoints_tensors():
    saved = {"net.0.module.weight": torch.ones(2, 1), "other": torch.ones(1)}
    found, notes = Checkpoint("a", saved).fitted({"0._orig_mod.weight": torch.zeros(2, 1)})
    assert list(found) == ["0._orig_mod.weight"]
    assert found["0._orig_mod.weight"] is saved["net.0.module.weight"]
    assert len(notes) == 3
    with pytest.raises(ValueError, match="checkpoint 'a' does not fit the critic"):
        Checkpoint("a", saved).fitted({"w": torch.zeros(1)}, of="the critic")


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_at_most_five_names_of_a_kind_and_the_nearest_prefix():
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    part = {f"net.{k}": v for k, v in deep.state_dict().items() if not k.startswith(("0", "1", "2", "3"))}
    part["net.9.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not fit Sequential") as error:
        Checkpoint("cut", part).load_into(deep)
    message = str(error.value)
    assert "prefix 'net.' taken off" in message
    assert "missing: 0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 3 more" in message
    assert "other shape: net.9.bias is (3,), the network's is (2,)" in message
    with pytest.raises(ValueError, match="and 15 more") as error:
        Checkpoint("other", {f"x.{i}": torch.ones(1) for i in range(17)}).load_into(copy.deepcopy(deep))
    assert "x.4 and 12 more" in str(error.value)
