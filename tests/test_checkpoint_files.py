"""Files and folders as trainers write them."""

import argparse
import pathlib

import pytest
import torch
from torch import nn

from landscape import load_checkpoint


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _is_read(path, network: nn.Module | None = None) -> tuple[str, ...]:
    """Whether the file has the weights of ``_network()``, and what is told of it."""
    network, checkpoint = network or _network(7), load_checkpoint(path)
    notes = (*checkpoint.notes, *checkpoint.load_into(network))
    for name, tensor in _network().state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    return notes


# --- Lightning --------------------------------------------------------------------------------------------------------


def _lightning(hyper_parameters) -> dict:
    return {
        "epoch": 4,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**{f"net.{k}": v for k, v in _network().state_dict().items()}, "acc.total": torch.tensor(9)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(4, 3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [{"base_lrs": [0.1], "_step_count": 3}],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 5}}}},
        "hyper_parameters": hyper_parameters,
    }


def test_lightning_files_with_plain_containers(tmp_path):
    torch.save(
        _lightning({"lr": 0.1, "widths": [3, (4, 2)], "on": {"a": None}, "seen": {1, 2}}), tmp_path / "last.ckpt"
    )
    assert load_checkpoint(tmp_path / "last.ckpt").name == "last"
    notes = _is_read(tmp_path / "last.ckpt")
    assert "'net.'" in notes[0]
    assert "acc.total" in notes[1]


@pytest.mark.parametrize("hyper_parameters", [argparse.Namespace(lr=0.1), {"data": pathlib.PurePosixPath("/data")}])
def test_lightning_files_with_objects_are_refused_with_the_remedy(tmp_path, hyper_parameters):
    path, remedied = tmp_path / "last.ckpt", tmp_path / "weights.pt"
    torch.save(_lightning(hyper_parameters), path)
    kind = "argparse.Namespace" if isinstance(hyper_parameters, argparse.Namespace) else r"pathlib\S*PurePosixPath"
    with pytest.raises(ValueError, match=rf"it names {kind}.*could run code") as error:
        load_checkpoint(path)
    remedy = 'torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
    assert remedy in str(error.value)
    torch.save(torch.load(path, weights_only=False)["state_dict"], remedied)
    _is_read(remedied)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of few workers and small logging intervals
def test_what_lightning_itself_writes(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, widths=(3, 2), rates=None):
            super().__init__()
            self.save_hyperparameters()
            self.net, self.criterion = _network(), nn.CrossEntropyLoss(weight=torch.ones(2))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.0)

        def training_step(self, batch, _):
            return self.criterion(self.net.eval()(batch[0]), batch[1])

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.TensorDataset(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    trainer.fit(Module(rates={"first": [0.1, 0.2]}), torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert "optimizer_states" in torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert any("criterion.weight" in note for note in _is_read(tmp_path / "a.ckpt"))


# --- where the state_dict is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params", "module"],
)
def test_the_trained_weights_come_before_their_averages(tmp_path, key):
    content = {"ema": _network(1).state_dict(), "config": {"lr": 0.1}, key: _network().state_dict()}
    torch.save(content, tmp_path / "a.pt")
    assert _is_read(tmp_path / "a.pt") == (f"the weights under {key!r} are taken, not the others under 'ema'",)
    torch.save({key: _network().state_dict(), "step": 3}, tmp_path / "a.pt")
    assert _is_read(tmp_path / "a.pt") == ()


@pytest.mark.parametrize("key", ["ema", "ema_state_dict", "model_ema", "state_dict_ema"])
def test_averages_are_taken_where_there_is_nothing_else(tmp_path, key):
    torch.save({key: _network().state_dict(), "model": {"name": "mlp"}, "epoch": 3}, tmp_path / "a.pt")
    (note,) = _is_read(tmp_path / "a.pt")
    assert repr(key) in note


def test_entries_that_are_no_tensors_are_ignored_and_told(tmp_path):
    torch.save({**_network().state_dict(), "epoch": 3, "args": {"lr": 0.1}}, tmp_path / "a.pt")
    assert set(load_checkpoint(tmp_path / "a.pt").tensors) == set(_network().state_dict())
    assert _is_read(tmp_path / "a.pt") == ("entries that are no tensors are ignored: epoch, args",)


def test_a_prefix_of_all_names_is_told_at_reading(tmp_path):
    torch.save({f"module._orig_mod.{k}": v for k, v in _network().state_dict().items()}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").notes == ("the prefix 'module._orig_mod.' of all names is taken off",)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_torchscript_is_code(tmp_path):
    torch.jit.trace(_network().eval(), torch.ones(1, 3)).save(str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match="TorchScript archive, which is code"):
        load_checkpoint(tmp_path / "a.pt")
