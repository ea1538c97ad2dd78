"""Entropy-SGD among the other machinery of a training script. The recipes here are those of docs/training.md.

Tolerances of 1e-12 and below allow float64 rounding alone: the same sums in another order.
"""

import copy

import pytest
import torch
from torch import nn

from optim import EntropySGD, refresh_batch_norm
from optim.batch_norm import hold_running_statistics
from tests.problems import DOUBLE, seeded, tiny_mlp


def _closure(optimizer, model, data, size=10, seed=0):
    order = seeded(seed)

    def closure():
        optimizer.zero_grad()
        i = torch.randperm(len(data[1]), generator=order)[:size]
        loss = nn.functional.cross_entropy(model(data[0][i]), data[1][i])
        loss.backward()
        return loss

    return closure


def _weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_clipping_by_the_gradient_hook_is_clipping_in_the_closure():
    def run(hook):
        model, data = tiny_mlp()
        clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.01)  # noqa: E731
        optimizer = EntropySGD(model.parameters(), 1.0, L=3, gradient_hook=clip if hook else None, generator=seeded(0))
        inner = _closure(optimizer, model, data)

        def closure():
            loss = inner()
            if not hook:
                clip()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return _weights(model)

    assert torch.equal(run(True), run(False))
    model, data = tiny_mlp()
    unclipped = EntropySGD(model.parameters(), 1.0, L=3, generator=seeded(0))
    unclipped.step(_closure(unclipped, model, data))
    assert (_weights(model) - run(True)).norm() > 0.01


def test_bf16_autocast():
    model, (x, y) = tiny_mlp()
    model = model.float()
    optimizer = EntropySGD(model.parameters(), 1.0, L=10, momentum=0.5, generator=seeded(0))

    def closure():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.float()), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("scale", [8.0, 2.0**127])
def test_grad_scaler_recipe(scale):
    """At a scale that fits, steps are those without a scaler; at one that overflows, inner steps are skipped."""

    def run(scaler):
        model, (x, y) = tiny_mlp()
        model, x = model.float(), x.float()
        model.unused = nn.Parameter(torch.zeros(1))  # the loss does not depend on it: its gradient stays None
        optimizer = EntropySGD(model.parameters(), 0.1, L=4, noise=0.0)
        order = seeded(0)

        def closure():
            optimizer.zero_grad()
            i = torch.randperm(50, generator=order)[:10]
            loss = 64 * nn.functional.cross_entropy(model(x[i]), y[i])  # 64 * 2^127 overflows
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
                optimizer.zero_grad()  # no gradient, no inner step
            scaler.update()  # lowers the scale after an overflow
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return _weights(model)

    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    weights, plain = run(scaler), run(torch.amp.GradScaler("cpu", enabled=False))
    assert weights.isfinite().all()
    if scale == 8.0:
        assert torch.equal(weights, plain)  # dividing by a power of two is exact
    else:
        assert scaler.get_scale() < scale
        assert not torch.equal(weights, plain)


def test_compiled_models():
    model, data = tiny_mlp()
    other = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    for network, weights in ((compiled, model), (other, other)):
        optimizer = EntropySGD(weights.parameters(), 1.0, L=3, generator=seeded(0))
        closure = _closure(optimizer, network, data)
        for _ in range(2):
            optimizer.step(closure)
    torch.testing.assert_close(_weights(model), _weights(other), rtol=1e-12, atol=1e-14)


def test_hooks_of_torch_optimizers_run_once_a_step():
    model, data = tiny_mlp()
    optimizer = EntropySGD(model.parameters(), 1.0, L=3)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("state"))
    closure = _closure(optimizer, model, data)
    for _ in range(2):
        optimizer.step(closure)
    optimizer.state_dict()
    assert calls == ["pre", "post", "pre", "post", "state"]


def test_groups_can_be_added_later():
    model, data = tiny_mlp()
    optimizer = EntropySGD(model[0].parameters(), 1.0, L=3, momentum=0.9)
    closure = _closure(optimizer, model, data)
    optimizer.step(closure)
    before = model[2].weight.detach().clone()
    assert torch.equal(model[2].weight, before)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.5})
    optimizer.step(closure)
    assert not torch.equal(model[2].weight, before)
    assert [group["lr"] for group in optimizer.outer.param_groups] == [1.0, 0.5]


# --- BatchNorm ---------------------------------------------------------------------------------------


def _normed():
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()


def test_running_statistics_are_those_of_the_weights_that_are_kept_not_of_inner_iterates():
    model, (_, data) = _normed(), tiny_mlp()
    optimizer = EntropySGD(model.parameters(), 1.0, L=3)
    closure = _closure(optimizer, model, data)
    before = copy.deepcopy(model[2].state_dict())
    with hold_running_statistics(model):
        optimizer.step(closure)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(model[2].state_dict()[name], before[name]), name
    assert model[2].momentum == 0.1
    optimizer.step(closure)
    assert not torch.equal(model[2].running_mean, before["running_mean"])


def test_batch_norm_statistics_are_refreshed_with_dropout_off():
    model, (_, (x, y)) = _normed(), tiny_mlp()
    model[1].eval()
    refresh_batch_norm(model, [(x, y)])
    hidden = model[1](x)  # without dropout
    torch.testing.assert_close(model[2].running_mean, hidden.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[2].running_var, hidden.var(0), rtol=1e-12, atol=1e-12)
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert model[2].momentum == 0.1


def test_batches_weigh_by_their_number_of_examples():
    model, (_, (x, y)) = nn.Sequential(nn.BatchNorm1d(4)).double(), tiny_mlp()
    refresh_batch_norm(model, [(x[:48], y[:48]), (x[48:] + 100, y[48:])])
    mean = torch.cat([x[:48], x[48:] + 100]).mean(0)
    torch.testing.assert_close(model[0].running_mean, mean, rtol=1e-12, atol=1e-12)


# --- several processes -------------------------------------------------------------------------------


def _rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, (x, y) = tiny_mlp()
    parallel = nn.parallel.DistributedDataParallel(model)
    # no generator: the ranks agree on a seed
    optimizer = EntropySGD(parallel.parameters(), 1.0, L=4, noise=0.1, momentum=0.9)
    torch.save(optimizer.generator.get_state(), f"{folder}/noise{rank}.pt")
    order = seeded(0)

    def closure():
        optimizer.zero_grad()
        i = torch.randperm(50, generator=order)[:10].chunk(2)[rank]
        loss = nn.functional.cross_entropy(parallel(x[i]), y[i])
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    torch.save(_weights(model), f"{folder}/weights{rank}.pt")
    torch.distributed.barrier()  # so that neither closes a connection that the other still uses
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_stay_bit_identical_and_follow_one_process_on_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    noise, weights = (
        [torch.load(tmp_path / f"{what}{rank}.pt", weights_only=True) for rank in (0, 1)]
        for what in ("noise", "weights")
    )
    assert torch.equal(*noise)
    assert torch.equal(*weights)

    model, data = tiny_mlp()
    generator = torch.Generator()
    generator.set_state(noise[0])
    optimizer = EntropySGD(model.parameters(), 1.0, L=4, noise=0.1, momentum=0.9, generator=generator)
    closure = _closure(optimizer, model, data)
    for _ in range(3):
        optimizer.step(closure)
    # the mean over two halves of a batch is the batch's, to rounding
    torch.testing.assert_close(weights[0], _weights(model), rtol=1e-12, atol=1e-13)
    assert weights[0].dtype == DOUBLE


# --- Lightning ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tensorboardX:UserWarning")  # Lightning's loggers, workers and log intervals
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_lightning_recipe(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.automatic_optimization = False  # a step takes several batches

        def configure_optimizers(self):
            return EntropySGD(self.model.parameters(), 1.0, L=4, generator=seeded(0))

        def training_step(self, batches, _):
            optimizer = self.optimizers()
            stream = iter(batches)

            def closure():
                x, y = next(stream)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(x), y)
                self.manual_backward(loss)
                return loss

            self.log("loss", optimizer.step(closure))

    model, (x, y) = tiny_mlp()
    batches = [(x[i], y[i]) for i in torch.arange(40).split(10)]  # four a step
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(model), torch.utils.data.DataLoader([batches], batch_size=None))

    plain, _ = tiny_mlp()
    optimizer = EntropySGD(plain.parameters(), 1.0, L=4, generator=seeded(0))
    for _ in range(3):
        stream = iter(batches)

        def closure():
            a, b = next(stream)  # noqa: B023
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain(a), b)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert torch.equal(_weights(model), _weights(plain))
