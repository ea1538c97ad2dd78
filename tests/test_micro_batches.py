"""How many examples are evaluated at once: what the caches hold, the same in every run, the same numbers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from landscape import ModelObjective
from landscape.objective.evaluation import memory
from landscape.objective.evaluation.memory import free_bytes, saved_bytes
from tests.problems import DOUBLE, seeded


def _counts(width: int, examples: int, **options) -> list[int]:
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
    data = torch.randn(examples, 4, generator=seeded(0)), torch.zeros(examples, dtype=torch.int64)
    return [count for _, count in ModelObjective(model, nn.CrossEntropyLoss(), data, **options)._batches]


def test_small_networks_see_as_many_examples_at_once_as_the_caches_hold():
    assert _counts(8, 3000) == [3000]
    # each example keeps its hidden units, 4 bytes each, and a few numbers: 16 MB hold just less than 400 of 10,000
    assert _counts(10_000, 1197) == [399, 399, 399]


def test_large_networks_see_128_examples_at_once_unless_that_takes_half_a_gigabyte():
    assert _counts(100_000, 256) == [128, 128]
    assert _counts(2_000_000, 65) == [33, 32]  # 8 MB for each example: no more than 63 at once


def test_a_size_that_is_given_is_kept():
    assert _counts(8, 300, batch_size=100) == [100, 100, 100]


def test_statistics_of_a_batch_depend_on_its_size_which_stays_128():
    assert max(_counts(8, 300, batch_norm="batch")) <= 128


def test_the_value_does_not_depend_on_the_size():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    data = torch.randn(300, 4, generator=seeded(0), dtype=DOUBLE), torch.zeros(300, dtype=torch.int64)
    at_once = ModelObjective(model, nn.CrossEntropyLoss(), data)
    in_parts = ModelObjective(model, nn.CrossEntropyLoss(), data, batch_size=7)
    # rounding only
    torch.testing.assert_close(at_once.gradient(at_once.theta), in_parts.gradient(at_once.theta), rtol=1e-12, atol=0)


@pytest.mark.parametrize("batch_size", [0, "many"])
def test_a_size_that_is_none_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        _counts(8, 300, batch_size=batch_size)


def test_the_graph_holds_the_activations_and_not_what_is_shared():
    """y = tanh(x W'): the product keeps x and W, which are shared, tanh keeps y."""
    x, w = torch.ones(10, 3), torch.ones(5, 3, requires_grad=True)
    assert saved_bytes(lambda: torch.tanh(x @ w.T), [x, w]) == 10 * 5 * 4
    assert saved_bytes(lambda: torch.tanh(x @ w.T), [w]) == 10 * 5 * 4 + 10 * 3 * 4


CGROUPS = {
    "version 2": ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    "version 1": (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("version", CGROUPS)
@pytest.mark.parametrize(("limit", "free"), [("5000", 1500), ("100", 0), ("max", None), (str(2**62), None)])
def test_no_more_memory_is_free_than_the_container_leaves(tmp_path, monkeypatch, version, limit, free):
    """What it holds counts, without the files that are kept as long as nobody needs the room."""
    allowed, taken, statistics, cached = CGROUPS[version]
    (tmp_path / "memory").mkdir()
    (tmp_path / allowed).write_text(f"{limit}\n")
    (tmp_path / taken).write_text("4000\n")
    (tmp_path / statistics).write_text(f"anon 3500\n{cached} 500\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert free_bytes(torch.device("cpu")) == (10**9 if free is None else free)


def test_without_a_container_the_hosts_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=7))
    assert free_bytes(torch.device("cpu")) == 7
