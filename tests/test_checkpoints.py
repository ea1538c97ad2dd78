import copy
import json
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from landscape import Checkpoint, load_checkpoint
from landscape.checkpoints import load_checkpoints
from optim.checkpoint import save_checkpoint
from tests.problems import tiny_mlp


def test_what_training_writes_is_what_we_read(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    metadata = {"optimizer": "SGD", "settings": {"lr": 0.1}, "test": {"loss": 0.5}, "seed": 0}
    path = save_checkpoint(tmp_path / "a" / "net.safetensors", model, metadata)
    checkpoint = load_checkpoint(path)
    assert checkpoint.name == "net"
    assert checkpoint.metadata == metadata
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.tensors[name], tensor), name
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    model, _ = tiny_mlp()
    path = save_checkpoint(tmp_path / "net.safetensors", model, {"seed": 0})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_checkpoint(path, model, {"seed": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tied_weights_are_written_under_each_name(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "t.safetensors", model, {}))
    assert torch.equal(checkpoint.tensors["0.weight"], checkpoint.tensors["1.weight"])
    checkpoint.load_into(model)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}])
def test_torch_files_of_a_state_dict(tmp_path, wrap):
    model, _ = tiny_mlp()
    torch.save(wrap(model.state_dict()), tmp_path / "net.pt")
    checkpoint = load_checkpoint(tmp_path / "net.pt", name="baseline")
    assert checkpoint.name == "baseline"
    assert torch.equal(checkpoint.tensors["0.weight"], model[0].weight)


def test_foreign_safetensors_headers_are_kept_as_text(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert load_checkpoint(tmp_path / "w.safetensors").metadata == {"format": "pt"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_wrapped_networks_are_taken_off(tmp_path, prefix):
    model, _ = tiny_mlp()
    torch.save({prefix + k: v for k, v in model.state_dict().items()}, tmp_path / "net.pt")
    load_checkpoint(tmp_path / "net.pt").load_into(model)


@pytest.mark.parametrize("wrapped", [nn.DataParallel, lambda model: nn.Sequential(OrderedDict(module=model))])
def test_a_network_may_be_wrapped_too(tmp_path, wrapped):
    saved, _ = tiny_mlp()
    other = wrapped(copy.deepcopy(saved))
    for p in other.parameters():
        p.data.zero_()
    for weights in (saved.state_dict(), wrapped(saved).state_dict()):
        torch.save(weights, tmp_path / "net.pt")
        load_checkpoint(tmp_path / "net.pt").load_into(other)
        for p, q in zip(other.parameters(), saved.parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    names = {"module.weight", "head.weight"}
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "net.pt")
    assert set(load_checkpoint(tmp_path / "net.pt").tensors) == names


def test_names_paths_and_equal_signs(tmp_path):
    model, _ = tiny_mlp()
    a = save_checkpoint(tmp_path / "lr=0.1" / "net.safetensors", model, {})
    b = save_checkpoint(tmp_path / "b" / "net.safetensors", model, {})
    assert [c.name for c in load_checkpoints([str(a), str(b)])] == ["lr=0.1-net", "b-net"]
    assert [c.name for c in load_checkpoints([f"first={a}", str(b)])] == ["first", "net"]


def test_a_name_given_several_times_is_that_of_a_group(tmp_path):
    model, _ = tiny_mlp()
    told = [save_checkpoint(tmp_path / f"{seed}.safetensors", model, {"seed": seed}) for seed in (7, 3)]
    silent = [save_checkpoint(tmp_path / f"{name}.safetensors", model, {}) for name in "ab"]
    specs = [f"SGD={told[0]}", f"SAM={silent[0]}", f"SGD={told[1]}", f"SAM={silent[1]}", f"one={told[0]}"]
    names = [c.name for c in load_checkpoints(specs)]
    assert names == ["SGD-seed7", "SAM-seed0", "SGD-seed3", "SAM-seed1", "one"]
    # the same seed twice cannot name both
    assert [c.name for c in load_checkpoints([f"SGD={told[0]}"] * 2)] == ["SGD-seed0", "SGD-seed1"]


def test_the_digest_tells_checkpoints_apart():
    model, _ = tiny_mlp()
    a = Checkpoint.of(model, "a")
    assert a.digest() == Checkpoint.of(model, "b").digest()
    with torch.no_grad():
        model[0].bias[0] += 1e-12
    assert a.digest() != Checkpoint.of(model, "a").digest()


def test_a_checkpoint_of_another_network_is_refused_by_name_and_shape():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    other = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        Checkpoint.of(other, "other").load_into(model)
    for part in ("'other'", "missing: 1.weight", "not in the network: 2.weight", "0.weight is (4, 2)"):
        assert part in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class _Payload:
    def __reduce__(self) -> tuple:
        return json.dumps, ({},)


def test_files_that_cannot_be_trusted_or_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a file"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"w": _Payload()}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="could run code"):
        load_checkpoint(tmp_path / "code.pt")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(_Payload(), protocol=2))
    with pytest.raises(ValueError, match=r"could run code|not a whole"):
        load_checkpoint(tmp_path / "raw.pkl")
    torch.save({"epoch": 3}, tmp_path / "no_weights.pt")
    with pytest.raises(ValueError, match=r"no state_dict.*epoch"):
        load_checkpoint(tmp_path / "no_weights.pt")
    torch.save({0: torch.ones(1), "model": {"lr": 0.1}}, tmp_path / "no_names.pt")
    with pytest.raises(ValueError, match=r"no state_dict.*0, model"):
        load_checkpoint(tmp_path / "no_names.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, no state_dict"):
        load_checkpoint(tmp_path / "list.pt")
    for garbage in (b"epoch 3\n", b"\x80\x02}", b""):
        (tmp_path / "garbage.pt").write_bytes(garbage)
        with pytest.raises(ValueError, match=r"could run code|not a whole"):
            load_checkpoint(tmp_path / "garbage.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_checkpoint(tmp_path / "cut.safetensors")
    model, _ = tiny_mlp()
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"not a whole torch\.save file"):
        load_checkpoint(tmp_path / "cut.pt")
