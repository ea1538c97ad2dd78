import json
import re
import sys

import pytest
from safetensors.torch import load_file, save_file

from landscape import CompareSettings, cli
from tests.test_problems import OWN

# the defaults suit networks of 1e5 weights, and take a minute
QUICK = [f"--{option}" for option in ("eigenvalues=3", "steps=10", "probes=3", "samples=5", "budget=500")]
QUICK += ["--examples=50", "--line-points=5", "--plane-points=3"]
QUICK += ["--radius=0.01", "--radius=0.05", "--radius=0.005", "--chains=3", "--moves=4", "--tol=0.5"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line as a user does; return its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["landscape", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def test_train_then_compare(run, tmp_path):
    code, out, _ = run("train", "--problem", "digits_mlp", "--epochs", 5, "--out", tmp_path / "trained")
    assert code == 0
    assert "SGD.safetensors" in out
    assert "SGD          60 gradients, 1 seed, test loss" in out
    checkpoints = [tmp_path / "trained" / f"{name}.safetensors" for name in ("SGD", "Entropy-SGD")]
    arguments = ("compare", *checkpoints, "--problem", "digits_mlp", *QUICK)
    code, out, progress = run(*arguments, "--out", tmp_path / "report")
    assert code == 0
    assert out == f"report: {tmp_path}/report/report.html\n"
    assert "Entropy-SGD/plane_random" in progress
    assert (tmp_path / "report" / "report.html").is_file()
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert found["settings"]["radii"] == [0.005, 0.01, 0.05]
    assert found["settings"]["plane_points"] == 3
    assert [found["settings"][f"smc_{name}"] for name in ("chains", "moves", "tol")] == [3, 4, 0.5]

    code, _, error = run(*arguments, "--out", tmp_path / "report")
    assert code == 1
    assert "--overwrite" in error
    assert "Traceback" not in error
    code, _, progress = run(*arguments, "--out", tmp_path / "report", "--resume")
    assert code == 0
    assert "plane_random" not in progress  # all was there


def test_seeds_are_compared_as_groups(run, tmp_path):
    trained = tmp_path / "trained"
    code, _, _ = run("train", "--problem", "digits_mlp", "--epochs", 2, "--seeds", 2, "--out", trained)
    assert code == 0
    runs = [trained / f"{name}-seed{seed}.safetensors" for name in ("SGD", "Entropy-SGD") for seed in (0, 1)]
    arguments = ("--problem", "digits_mlp", "--analysis", "eigenpairs", *QUICK)
    code, _, _ = run("compare", *runs, *arguments, "--out", tmp_path / "by_name")
    assert code == 0
    named = [f"{name}={path}" for name, path in zip(("A", "A", "B", "B"), runs, strict=True)]
    code, _, _ = run("compare", *named, *arguments, "--out", tmp_path / "named")
    assert code == 0
    groups = [json.loads((tmp_path / out / "results.json").read_text())["groups"] for out in ("by_name", "named")]
    assert groups[0] == {name: [f"{name}-seed0", f"{name}-seed1"] for name in ("SGD", "Entropy-SGD")}
    assert groups[1] == {name: [f"{name}-seed0", f"{name}-seed1"] for name in ("A", "B")}
    report = (tmp_path / "by_name" / "report.html").read_text()
    assert "Of 1 measure over 2 pairs of runs of SGD and Entropy-SGD" in report


def test_a_diverged_run_is_left_out_only_if_asked(run, tmp_path):
    trained = tmp_path / "trained"
    run("train", "--problem", "digits_mlp", "--epochs", 2, "--seeds", 3, "--optimizer", "SGD", "--out", trained)
    paths = [trained / f"SGD-seed{seed}.safetensors" for seed in range(3)]
    tensors = load_file(paths[1])
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, paths[1])
    arguments = ("--problem", "digits_mlp", "--analysis", "eigenpairs", *QUICK, "--out", tmp_path / "r")
    code, _, error = run("compare", *paths, *arguments)
    assert code == 1
    assert "1 of 3 checkpoints have a training loss that is not finite: 'SGD-seed1' (nan)" in error
    code, _, _ = run("compare", *paths, *arguments, "--drop-diverged")
    assert code == 0
    assert "1 of 3 checkpoints was left out" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--problem", "cifar"], "problem='cifar' is unknown"),
        (["train", "--problem", "mnist_lenet"], "--data FOLDER"),
        (["train", "--optimizer", "lion"], "optimizer='lion'"),
        (["compare", "none.safetensors", "--problem", "digits_mlp"], "is not a file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*arguments)
    assert code == 1
    assert message in error
    assert error.startswith("landscape: ")
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.rglob("*")) == []


def test_the_corrected_command_runs(run, tmp_path):
    train = ("train", "--problem", "digits_mlp", "--epochs", 1, "--out", tmp_path / "t1", "--optimizer")
    assert run(*train, "lion")[0] == 1
    assert run(*train, "SGD")[0] == 0


def test_an_output_that_is_a_file_is_one_line(run, tmp_path):
    (tmp_path / "notes").write_text("mine")
    code, _, error = run("train", "--problem", "digits_mlp", "--out", tmp_path / "notes")
    assert code == 1
    assert len(error.strip().splitlines()) == 1
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("option", ["--probes", "--samples", "--chains", "--line-points", "--plane-points"])
def test_one_is_too_few(run, option):
    code, _, error = run("compare", "a.pt", "--problem", "digits_mlp", option, 1)
    assert code == 2
    assert option in error


def test_a_users_error_keeps_its_traceback(run, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def f():\n    raise ValueError('mine')")
    monkeypatch.setattr(sys, "argv", ["landscape", "train", "--problem", f"{tmp_path}/own.py:f"])
    with pytest.raises(RuntimeError, match="raised ValueError: mine"):
        cli.main()


def test_a_checkpoint_that_does_not_fit_leaves_no_report(run, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    run("train", "--problem", "digits_mlp", "--epochs", 1, "--optimizer", "SGD", "--out", tmp_path / "t")
    code, _, error = run(
        "compare",
        tmp_path / "t" / "SGD.safetensors",
        "--problem",
        f"{tmp_path}/own.py:tiny",
        "--out",
        tmp_path / "r",
    )
    assert code == 1
    assert "'SGD' does not fit Linear" in error
    assert not (tmp_path / "r").exists()


def test_checkpoints_can_be_named(run, tmp_path):
    for seed in (0, 1):
        run("train", "--problem", "digits_mlp", "--epochs", 1, "--optimizer", "SGD", "--seed", seed,
            "--out", tmp_path / f"seed{seed}")  # fmt: skip
    a, b = (tmp_path / f"seed{seed}" / "SGD.safetensors" for seed in (0, 1))
    for out, given, names in (
        ("r1", (a, b), ["seed0-SGD", "seed1-SGD"]),
        ("r2", (f"first={a}", b), ["first", "SGD"]),
    ):
        code, _, _ = run("compare", *given, "--problem", "digits_mlp", *QUICK, "--out", tmp_path / out)
        assert code == 0
        assert json.loads((tmp_path / out / "results.json").read_text())["names"] == names


def test_help_lists_the_three_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("demo", "train", "compare"):
        assert command in out


def test_help_names_the_default_radii(run):
    _, out, _ = run("compare", "--help")
    unwrapped = re.sub(r"[\s│]+", " ", out)  # the help stands in a box
    assert ", ".join(f"{radius:g}" for radius in CompareSettings().radii) in unwrapped
