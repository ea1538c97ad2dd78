"""Folders as Hugging Face's ``save_pretrained`` writes them."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from landscape import load_checkpoint
from landscape.checkpoints import load_checkpoints


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def _write(tensors: dict, path) -> None:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def _folder(path, kind: str, shards: int = 1):
    """A folder with the weights of ``_network()``, each shard with its share of the names."""
    path.mkdir()
    stem, suffix = kind.split(".")
    state = _network().state_dict()
    if shards == 1:
        _write(state, path / kind)
        return path
    places = {name: f"{stem}-{i % shards + 1:05}-of-{shards:05}.{suffix}" for i, name in enumerate(state)}
    for place in set(places.values()):
        _write({name: tensor for name, tensor in state.items() if places[name] == place}, path / place)
    index = {"metadata": {"total_size": 104}, "weight_map": places}
    (path / f"{kind}.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_folders_whole_and_in_shards(tmp_path, kind, shards):
    folder = _folder(tmp_path / "step-1.5", kind, shards)
    (folder / "config.json").write_text("{}")
    checkpoint, network = load_checkpoint(folder), _network(1)
    assert checkpoint.name == "step-1.5"
    checkpoint.load_into(network)
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in _network().state_dict().items())
    other = _folder(tmp_path / "b", kind, shards).rename(tmp_path / "lr=1")
    assert [c.name for c in load_checkpoints([str(folder), f"first={folder}", str(other)])] == [
        "step-1.5",
        "first",
        "lr=1",
    ]


def test_safetensors_come_before_what_is_pickled(tmp_path):
    folder = _folder(tmp_path / "a", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert set(load_checkpoint(folder).tensors) == set(_network().state_dict())


def test_links_to_a_store_elsewhere_are_followed(tmp_path):
    """As the Hugging Face cache lays its folders out."""
    folder = _folder(tmp_path / "a", "model.safetensors", 2)
    (tmp_path / "blobs").mkdir()
    for shard in list(folder.glob("*.safetensors")):
        blob = shard.rename(tmp_path / "blobs" / shard.name)
        shard.symlink_to(blob)
    load_checkpoint(folder).load_into(_network(1))


def test_what_is_missing_is_named(tmp_path):
    folder = _folder(tmp_path / "a", "model.safetensors", 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors.*missing"):
        load_checkpoint(folder)
    save_file({"2.bias": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"do not hold: 0\.bias in model-00002"):
        load_checkpoint(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match="with none of") as error:
        load_checkpoint(tmp_path / "empty")
    for name in ("model.safetensors,", "model.safetensors.index.json", "pytorch_model.bin,", "adapter_model"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/secret.bin", "a/../../b.bin", "..\\secret.bin", "C:x"]
)
def test_an_index_that_points_outside_is_refused(tmp_path, place):
    save_file({"w": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": place}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"w": 1}}']
)
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(ValueError, match="is no index"):
        load_checkpoint(tmp_path)


def test_shards_that_could_run_code_are_refused(tmp_path):
    folder = _folder(tmp_path / "a", "pytorch_model.bin", 2)
    torch.save({"0.bias": nn.Linear(1, 1)}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(ValueError, match="could run code"):
        load_checkpoint(folder)


def test_what_transformers_itself_writes(tmp_path):
    """With a tied head, whole and in shards, and the base model's file in the network with a head and back."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    tokens = torch.arange(6)[None]
    torch.manual_seed(0)
    saved = transformers.GPT2LMHeadModel(config).eval()
    saved.save_pretrained(tmp_path / "whole")
    saved.save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    saved.transformer.save_pretrained(tmp_path / "base")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    for name in ("whole", "shards", "base"):
        network = transformers.GPT2LMHeadModel(config).eval()
        notes = load_checkpoint(tmp_path / name).load_into(network)
        assert any("tied" in note for note in notes)
        assert torch.equal(network(tokens).logits, saved(tokens).logits)
        base = transformers.GPT2Model(config).eval()
        load_checkpoint(tmp_path / name).load_into(base)
        assert torch.equal(base(tokens).last_hidden_state, saved.transformer(tokens).last_hidden_state)
