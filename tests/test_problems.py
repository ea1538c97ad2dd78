import gzip
import struct
import sys

import numpy as np
import pytest
import torch
from torch import nn

from landscape.problems import (
    BUILT_IN,
    Problem,
    digits_cnn,
    digits_mlp,
    find_problem,
    mnist_fc,
    mnist_lenet,
)


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("function", "weights"), [(digits_cnn, 3658), (digits_mlp, 2410)])
def test_the_digits_are_split_once_and_for_all(function, weights):
    problem, again = function(), function()
    assert problem.train[0].shape == (1437, 1, 8, 8)
    assert problem.test[0].shape == (360, 1, 8, 8)
    assert torch.equal(problem.train[0], again.train[0])
    assert problem.train[0].min() == 0
    assert problem.train[0].max() == 1
    counts = torch.bincount(problem.test[1])
    assert counts.min() >= 34  # stratified: 360 images of 10 classes
    model = problem.build(seed=0)
    assert _weights(model) == weights
    assert model(problem.test[0]).shape == (360, 10)


def test_the_seed_decides_the_initial_weights_and_nothing_else_moves():
    state = torch.get_rng_state()
    problem = digits_mlp()
    a, b, c = (problem.build(seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_fewer_examples_are_drawn_without_replacement():
    problem = digits_mlp()
    few = problem.objective("train", examples=100, seed=3)
    assert few.examples == 100
    inputs, _ = problem.data("train", examples=100, seed=3)
    assert len({tuple(row.tolist()) for row in inputs.flatten(1)}) == 100
    assert not torch.equal(inputs, problem.data("train", examples=100, seed=4)[0])
    with pytest.raises(ValueError, match=r"split='valid'"):
        problem.objective("valid")
    with pytest.raises(ValueError, match=r"examples=2: the problem's data is a list"):
        Problem("p", problem.model, problem.loss, [problem.train], []).data("train", examples=2)


# --- MNIST from IDX files ----------------------------------------------------------------------------


def _write_idx(path, array, compress=False):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.fixture
def mnist_folder(tmp_path):
    """A stand-in of 12 + 4 random images in MNIST's own format."""
    rng = np.random.default_rng(0)
    for split, count, compress in (("train", 12, False), ("t10k", 4, True)):
        images = rng.integers(0, 256, (count, 28, 28))
        _write_idx(tmp_path / f"{split}-images-idx3-ubyte", images, compress)
        _write_idx(tmp_path / f"{split}-labels-idx1-ubyte", np.arange(count) % 10, compress)
    return tmp_path


def test_idx_files_plain_and_gzipped(mnist_folder):
    problem = mnist_lenet(mnist_folder)
    images, labels = problem.train
    assert images.shape == (12, 1, 28, 28)
    assert labels.tolist() == [*range(10), 0, 1]
    raw = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
    np.testing.assert_allclose(images[:, 0] * 0.3081 + 0.1307, raw / 255, atol=1e-6)
    assert problem.test[0].shape == (4, 1, 28, 28)


def test_the_networks_of_the_paper(mnist_folder):
    lenet = mnist_lenet(mnist_folder).build(0)
    assert _weights(lenet) == 131_220  # the paper's count
    fc = mnist_fc(mnist_folder).build(0)
    # three matrices with biases, and two BatchNorms of 1024
    assert _weights(fc) == 785 * 1024 + 1025 * 1024 + 1025 * 10 + 4 * 1024
    for model in (lenet, fc):
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_broken_mnist_folders_are_named(mnist_folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        mnist_lenet(tmp_path_factory.mktemp("empty"))
    labels = mnist_folder / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="holds 11 values, its header says 12"):
        mnist_lenet(mnist_folder)
    labels.write_bytes(b"PK" + whole[2:])
    with pytest.raises(ValueError, match="not an IDX file"):
        mnist_lenet(mnist_folder)
    _write_idx(labels, np.arange(11))
    with pytest.raises(ValueError, match="12 train images and 11 labels"):
        mnist_lenet(mnist_folder)


# --- finding a problem -------------------------------------------------------------------------------

OWN = """
import torch
from landscape.problems import Problem

def tiny():
    data = (torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
    return Problem("tiny", lambda: torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), data, data)

def with_data(folder):
    return tiny()

def with_default(size=2):
    return tiny()

def with_options(*sizes, **options):
    return tiny()

def with_two(a, b):
    return tiny()

def by_name(*, size):
    return tiny()

def wrong():
    return 3

value = 7
"""


def test_built_in_module_and_file(tmp_path, monkeypatch):
    (tmp_path / "own_problem.py").write_text("import net\n" + OWN)
    (tmp_path / "net.py").write_text("")
    assert find_problem("digits_mlp").name == "digits_mlp"
    assert find_problem(f"{tmp_path}/own_problem.py:tiny").name == "tiny"
    assert find_problem(f"{tmp_path}/own_problem.py:with_data", data=tmp_path).name == "tiny"
    assert find_problem(f"{tmp_path}/own_problem.py:with_default").name == "tiny"
    assert find_problem(f"{tmp_path}/own_problem.py:with_options").name == "tiny"
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    assert find_problem("own_problem:tiny").name == "tiny"
    assert sys.path == path


@pytest.mark.parametrize("where", ["late_user", "late_user.py"])
def test_the_function_itself_may_import_its_siblings(tmp_path, monkeypatch, where):
    (tmp_path / "late_user.py").write_text(OWN + "\ndef late():\n    import late_net\n    return tiny()")
    (tmp_path / "late_net.py").write_text("")
    for name in ("late_user", "late_net"):  # forgotten again afterwards
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    assert find_problem(f"{where}:late").name == "tiny"
    assert sys.path == path


def test_a_file_named_like_a_module_does_not_replace_it(tmp_path):
    import json

    (tmp_path / "json.py").write_text(OWN)
    assert find_problem(f"{tmp_path}/json.py:tiny").name == "tiny"
    assert sys.modules["json"] is json


def test_problems_that_cannot_be_found_are_named(tmp_path):
    (tmp_path / "own_problem.py").write_text(OWN)
    own = f"{tmp_path}/own_problem.py"
    for spec, data, message in (
        ("cifar", None, "problem='cifar' is unknown.*digits_cnn"),
        ("no_such_module:f", None, "cannot import 'no_such_module'"),
        ("landscape.no_such_module:f", None, "cannot import 'landscape.no_such_module'"),
        ("folder/no_such_file:f", None, "cannot import 'folder/no_such_file'"),
        (":f", None, "cannot import ''"),
        (f"{tmp_path}/none.py:f", None, "cannot import"),
        (f"{own}:none", None, "no function 'none'"),
        (f"{own}:value", None, "no function 'value'"),
        (f"{own}:wrong", None, "returned a int.*Problem"),
        (f"{own}:with_data", None, "--data FOLDER"),
        (f"{own}:with_two", None, "takes 2 arguments"),
        (f"{own}:by_name", None, "needs size= by name"),
        (f"{own}:tiny", tmp_path, "takes no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            find_problem(spec, data)
    assert set(BUILT_IN) == {"digits_cnn", "digits_mlp", "mnist_lenet", "mnist_fc"}


def test_errors_in_a_users_code_are_the_users_to_see(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "failing.py").write_text("def f():\n    raise ValueError('mine')")
    (tmp_path / "lacking.py").write_text("import no_such_module")
    for file, cause in (("broken", ZeroDivisionError), ("failing", ValueError), ("lacking", ModuleNotFoundError)):
        with pytest.raises(RuntimeError, match=f"{file}.py:f' raised {cause.__name__}") as error:
            find_problem(f"{tmp_path}/{file}.py:f")
        assert isinstance(error.value.__cause__, cause)
    assert "_landscape_problem_broken" not in sys.modules
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="'lacking:f' raised ModuleNotFoundError"):
        find_problem("lacking:f")
