import dataclasses

import pytest
import torch

from landscape import Checkpoint
from landscape.experiment import OPTIMIZERS, summary, train_at_equal_budget
from landscape.problems import digits_mlp


def test_all_optimizers_spend_the_same_gradients_from_the_same_weights(tmp_path):
    checkpoints = train_at_equal_budget(digits_mlp(), tmp_path, epochs=5, batch_size=128)
    assert [c.name for c in checkpoints] == ["SGD", "Entropy-SGD"]
    # 12 gradients an epoch; 60 is a multiple of L = 20
    assert [c.metadata["gradients"] for c in checkpoints] == [60, 60]
    assert [c.metadata["steps"] for c in checkpoints] == [60, 3]
    for checkpoint in checkpoints:
        for key in ("optimizer", "settings", "seed", "train", "test", "problem", "weight_decay"):
            assert key in checkpoint.metadata
        assert checkpoint.metadata["test"]["accuracy"] > 0.3  # chance is 0.1


@pytest.mark.slow
def test_every_optimizer_over_three_seeds_at_one_budget(tmp_path):
    checkpoints = train_at_equal_budget(digits_mlp(), tmp_path, optimizers=list(OPTIMIZERS), epochs=10, seeds=3)
    assert len(checkpoints) == 3 * len(OPTIMIZERS)
    assert {c.metadata["gradients"] for c in checkpoints} == {120}
    assert checkpoints[1].name == "SGD-seed1"
    assert len({c.digest() for c in checkpoints}) == len(checkpoints)
    steps = {c.metadata["recipe"]: c.metadata["steps"] for c in checkpoints}
    assert steps == {"SGD": 120, "Entropy-SGD": 6, "Adam": 120, "Entropy-Adam": 24, "SAM": 60}
    for checkpoint in checkpoints:
        assert checkpoint.metadata["test"]["accuracy"] > 0.5  # chance is 0.1
        assert (tmp_path / checkpoint.name / "log.jsonl").is_file()


def test_the_summary_has_means_and_standard_deviations_over_seeds():
    def run(recipe, loss):
        return Checkpoint("x", {}, {"recipe": recipe, "gradients": 60, "test": {"loss": loss, "accuracy": 0.5}})

    lines = summary([run("SGD", 1.0), run("SGD", 3.0), run("SAM", 2.0)])
    assert lines == [
        "SGD          60 gradients, 2 seeds, test loss 2.0000 ± 1.4142, test accuracy 0.5000 ± 0.0000",
        "SAM          60 gradients, 1 seed, test loss 2.0000, test accuracy 0.5000",
    ]


@pytest.mark.parametrize(("epochs", "gradients"), [(1, 20), (6, 80)])
def test_the_budget_is_rounded_up_to_whole_steps_of_all(tmp_path, epochs, gradients):
    # 12 gradients an epoch, and Entropy-SGD spends 20 a step
    checkpoints = train_at_equal_budget(digits_mlp(), tmp_path, epochs=epochs)
    assert [c.metadata["gradients"] for c in checkpoints] == [gradients, gradients]


def test_existing_checkpoints_are_kept_and_others_refused(tmp_path):
    options = {"optimizers": ["SGD"], "epochs": 1}
    (first,) = train_at_equal_budget(digits_mlp(), tmp_path, **options)
    written = (tmp_path / "SGD.safetensors").stat().st_mtime_ns
    (again,) = train_at_equal_budget(digits_mlp(), tmp_path, **options)
    assert (tmp_path / "SGD.safetensors").stat().st_mtime_ns == written
    assert first.digest() == again.digest()
    with pytest.raises(ValueError, match="trained with another weight_decay, seed: overwrite"):
        train_at_equal_budget(digits_mlp(), tmp_path, **options, seed=1, weight_decay=0.1)


def test_training_is_reproducible(tmp_path):
    runs = [train_at_equal_budget(digits_mlp(), tmp_path / name, epochs=2)[1].tensors for name in ("a", "b")]
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"optimizer='adamw'.*SGD, Entropy-SGD"):
        train_at_equal_budget(digits_mlp(), tmp_path, optimizers=["adamw"])
    problem = digits_mlp()
    listed = dataclasses.replace(problem, train=[problem.train])
    with pytest.raises(ValueError, match=r"'digits_mlp' has training data of type list"):
        train_at_equal_budget(listed, tmp_path)
    assert not any(tmp_path.iterdir())
