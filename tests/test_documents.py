"""What README and notebooks show is what happens."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import xarray
from nbclient import NotebookClient

from landscape.problems import find_problem

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
NOTEBOOKS = sorted((ROOT / "analysis_notebooks").glob("*.ipynb"))


@pytest.mark.slow
def test_the_60_second_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], "README.md", "exec"), {"__name__": "readme"})
    plt.close("all")
    assert (tmp_path / "eigenvalues.png").is_file()
    assert "trace" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")  # PyHessian's
def test_the_guide_to_spectra_runs_as_printed(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "spectra.md").read_text(), re.S)
    exec(compile("\n".join(blocks), "spectra.md", "exec"), {"__name__": "spectra"})
    plt.close("all")
    printed = capsys.readouterr().out
    assert "agrees with forward-over-reverse" in printed
    assert "bulk_edge" in printed


def test_the_guide_to_networks_of_ones_own_runs_as_printed(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "your_network.md").read_text(), re.S)
    exec(compile("\n".join(blocks), "your_network.md", "exec"), {"__name__": "your_network"})
    printed = capsys.readouterr().out
    for told in ("dropout is off in 1 layers", "agrees with forward-over-reverse", "ignore_index=-100", "170 1."):
        assert told in printed


@pytest.mark.slow
def test_an_analysis_of_ones_own_takes_twenty_lines_and_appears_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
    assert sum(bool(line) for line in blocks[0].splitlines()) <= 20
    exec(compile("\n".join(blocks), "extending.md", "exec"), namespace := {"__name__": "extending"})
    ratio = float(capsys.readouterr().out.splitlines()[0])
    values = namespace["comparison"].results["SGD/eigenpairs"].values
    assert ratio == pytest.approx(values.sum() ** 2 / (values**2).sum())
    with xarray.open_datatree("runs/own/run.zarr") as tree:
        assert float(tree["SGD/participation"].ratio) == ratio
    page = (tmp_path / "runs" / "own" / "report.html").read_text()
    assert "<h2>Participation ratio</h2>" in page
    assert "In how many directions the loss is curved." in page
    assert "<td>participation ratio</td>" in re.sub(r"\s*</td>", "</td>", page)


@pytest.mark.slow
def test_the_guide_to_slices_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "slices.md").read_text(), re.S)
    exec(compile("\n".join(blocks), "slices.md", "exec"), {"__name__": "slices"})
    plt.close("all")
    assert "2 evaluations, at theta and at one point, and True" in capsys.readouterr().out


def test_the_guide_to_reliability_runs_as_printed(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reliability.md").read_text(), re.S)
    exec(compile(block, "reliability.md", "exec"), namespace := {"__name__": "reliability"})
    assert namespace["low"] < 5050 < namespace["high"]
    assert str(namespace["low"]) in capsys.readouterr().out


@pytest.mark.slow
def test_the_guide_to_local_entropy_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "local_entropy.md").read_text(), re.S)
    exec(compile("\n".join(blocks), "local_entropy.md", "exec"), namespace := {"__name__": "local_entropy"})
    plt.close("all")
    assert "smc [" in capsys.readouterr().out
    entropy, (low, high) = namespace["entropy"], namespace["entropy"].excess_bracket
    assert entropy.reliable
    assert low < entropy.excess < high


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tensorboardX:UserWarning")  # Lightning's loggers, workers and log intervals
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_the_guide_to_training_runs_as_printed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    exec(compile("\n".join(blocks), "training.md", "exec"), namespace := {"__name__": "training"})
    plt.close("all")
    assert "600 gradients in 30 steps" in capsys.readouterr().out
    assert namespace["trainer"].global_step == 2  # of four batches of 128, from 1,437 examples
    kept = sorted(file.stem for file in Path("runs/entropy-sgd/trajectory").iterdir())
    assert kept == [f"{gradients:08}" for gradients in (0, 200, 400, 600)]
    assert sum("test_loss" in line for line in namespace["lines"]) == 10  # every 60 gradients


def test_the_problem_function_is_a_problem(tmp_path):
    (tmp_path / "my_problem.py").write_text(BLOCKS[1])
    problem = find_problem(f"{tmp_path}/my_problem.py:spirals")
    f = problem.objective("train")
    assert f.examples == 600
    assert f.value(f.theta) > 0


@pytest.mark.slow
def test_the_commands_for_a_problem_of_ones_own_run_as_printed(tmp_path):
    (tmp_path / "my_problem.py").write_text(BLOCKS[1])
    commands = re.findall(r"^    (landscape .*my_problem.*)$", README, re.M)
    assert [command.split()[1] for command in commands] == ["train", "compare"] * 2
    for command in commands:
        # as a shell expands them
        words = [sorted(tmp_path.glob(word)) if "*" in word else [word] for word in command.split()[1:]]
        arguments = [word for several in words for word in several]
        subprocess.run([Path(sys.executable).parent / "landscape", *arguments], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-c", BLOCKS[2]], cwd=tmp_path, check=True)  # the same in Python
    for folder in ("spirals-report", "spirals-in-python", "seeds-report"):
        assert (tmp_path / "runs" / folder / "report.html").is_file()
        assert (tmp_path / "runs" / folder / "results.json").is_file()
    assert "over 3 pairs of runs of" in (tmp_path / "runs" / "seeds-report" / "report.html").read_text()


def test_the_pictures_of_the_readme_are_there_and_made_by_a_target():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README)
    assert len(pictures) >= 2
    makefile = (ROOT / "Makefile").read_text()
    for picture in pictures:
        assert (ROOT / picture).is_file()
        assert Path(picture).name in makefile
    assert README.index(pictures[1]) < README.index("## ")  # in the first screen


def test_the_glossary_names_modules_that_there_are():
    paths = set(re.findall(r"`((?:landscape|optim)/[\w/]+\.py)`", (ROOT / "docs" / "notation.md").read_text()))
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).is_file(), path


def test_links_lead_somewhere():
    guides = sorted((ROOT / "docs").glob("*.md"))
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *guides):
        for link in re.findall(r"\]\(([^)]*)\)", document.read_text()):
            assert link.startswith("https://") or document.parent.joinpath(link).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_saved_with_their_pictures_and_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 15
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert all(o.output_type != "error" for o in outputs)
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Kernel is running over TCP")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path):
    shutil.copy(path, tmp_path)
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell does
