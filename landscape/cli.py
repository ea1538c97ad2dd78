"""The command line: ``landscape demo``, ``landscape train``, ``landscape compare``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from landscape.checkpoints import load_checkpoints
from landscape.compare import ANALYSES, CompareSettings, compare
from landscape.experiment import OPTIMIZERS, summary, train_at_equal_budget
from landscape.problems import BUILT_IN, find_problem
from landscape.report import write_report
from landscape.results import Comparison
from landscape.results.store import output_folder

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train with SGD and Entropy-SGD at an equal budget of gradients; compare the minima's flatness.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DEFAULTS = CompareSettings()

ProblemName = Annotated[
    str,
    typer.Option(
        "--problem",
        help=f"One of {', '.join(BUILT_IN)}, package.module:function, or path/to/file.py:function.",
    ),
]
Data = Annotated[Path | None, typer.Option(help="Folder of data, for problem functions that take one.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty the folder first.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the folder holds.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Seeds = Annotated[int, typer.Option(min=1, help="Train for so many seeds, from --seed on.")]
Epochs = Annotated[int, typer.Option(min=1, help="The budget: passes over the data, in gradients.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples per gradient.")]
WeightDecay = Annotated[float, typer.Option(min=0, help="Adds this / 2 times the squared weight norm.")]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    seeds: Seeds = 3,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """The whole story on scikit-learn's digits: train, compare, write the report."""
    problem = find_problem("digits_cnn")
    settings = CompareSettings(seed=seed)
    with output_folder(out, overwrite=overwrite, resume=resume):
        checkpoints = train_at_equal_budget(problem, out / "checkpoints", seed=seed, seeds=seeds, progress=_bar)
        _tell(compare(checkpoints, problem, settings=settings, store=out / "run.zarr", progress=_bar), out)


@app.command()
def train(
    problem: ProblemName = "digits_cnn",
    optimizer: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(OPTIMIZERS)}; again for several. Default: SGD, Entropy-SGD."),
    ] = None,
    data: Data = None,
    epochs: Epochs = 200,
    batch_size: BatchSize = 128,
    weight_decay: WeightDecay = 1e-3,
    seed: Seed = 0,
    seeds: Seeds = 1,
    out: Out = Path("runs/train"),
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Train with each optimizer at the same budget of gradients; write one checkpoint each."""
    found = find_problem(problem, data)
    with output_folder(out, overwrite=overwrite, resume=resume):
        checkpoints = train_at_equal_budget(
            found,
            out,
            optimizers=optimizer or ("SGD", "Entropy-SGD"),
            epochs=epochs,
            batch_size=batch_size,
            weight_decay=weight_decay,
            seed=seed,
            seeds=seeds,
            progress=_bar,
        )
    for checkpoint in checkpoints:
        typer.echo(f"{out / checkpoint.name}.safetensors")
    for line in summary(checkpoints):
        typer.echo(line)


@app.command(name="compare")
def compare_command(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Saved weights, .safetensors or torch.save of a state_dict: PATH, or NAME=PATH. Files called "
            "NAME-seedK are runs of one group, and so are several NAME=PATH of one NAME.",
            metavar="CHECKPOINT...",
        ),
    ],
    problem: ProblemName,
    analysis: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(a.name for a in ANALYSES)}; again for several. Default: all."),
    ] = None,
    data: Data = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Training examples to use. Default: all.")] = None,
    weight_decay: WeightDecay = 0.0,
    eigenvalues: Annotated[int, typer.Option(min=1, help="How many to find.")] = _DEFAULTS.eigenvalues,
    steps: Annotated[int, typer.Option(min=1, help="Lanczos steps per probe.")] = _DEFAULTS.steps,
    probes: Annotated[int, typer.Option(min=2, help="Of the spectral density.")] = _DEFAULTS.probes,
    samples: Annotated[int, typer.Option(min=2, help="Monte Carlo draws.")] = _DEFAULTS.samples,
    radius: Annotated[
        list[float] | None,
        typer.Option(
            help="Of the local entropy; again for several. The middle one is tabulated, and it and the next are those "
            f"of annealed SMC. Default: {', '.join(f'{radius:g}' for radius in _DEFAULTS.radii)}."
        ),
    ] = None,
    chains: Annotated[int, typer.Option(min=2, help="Of each population of annealed SMC.")] = _DEFAULTS.smc_chains,
    moves: Annotated[int, typer.Option(min=1, help="Of each of its chains at each temperature.")] = _DEFAULTS.smc_moves,
    tol: Annotated[float, typer.Option(help="Width of its bracket, relative to |F~|.")] = _DEFAULTS.smc_tol,
    budget: Annotated[
        int, typer.Option(min=1, help="Gradients at most for each radius of annealed SMC.")
    ] = _DEFAULTS.budget,
    line_points: Annotated[int, typer.Option(min=2, help="On each line.")] = _DEFAULTS.line_points,
    plane_points: Annotated[int, typer.Option(min=2, help="Per side of a plane.")] = _DEFAULTS.plane_points,
    drop_diverged: Annotated[
        bool, typer.Option("--drop-diverged", help="Leave out checkpoints whose loss is not finite, and say so.")
    ] = False,
    seed: Seed = 0,
    out: Out = Path("runs/compare"),
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Compare the minima that checkpoints of one network lie in; write the report."""
    found = find_problem(problem, data)
    loaded = load_checkpoints(checkpoints)
    settings = CompareSettings(
        seed=seed,
        examples=examples,
        weight_decay=weight_decay,
        eigenvalues=eigenvalues,
        steps=steps,
        probes=probes,
        samples=samples,
        radii=tuple(sorted(radius)) if radius else _DEFAULTS.radii,
        smc_chains=chains,
        smc_moves=moves,
        smc_tol=tol,
        budget=budget,
        line_points=line_points,
        plane_points=plane_points,
    )
    with output_folder(out, overwrite=overwrite, resume=resume):
        result = compare(
            loaded,
            found,
            drop_diverged=drop_diverged,
            analyses=analysis,
            settings=settings,
            store=out / "run.zarr",
            progress=_bar,
        )
        _tell(result, out)


def _tell(result: Comparison, out: Path) -> None:
    for group, why in result.failures.items():
        typer.echo(f"failed: {group}: {why}", err=True)
    typer.echo(f"report: {write_report(result, out)}")


def _bar(iterable: Iterable[Any], description: str) -> Iterable[Any]:
    return tqdm(iterable, f"{description:32}", dynamic_ncols=True)


def main() -> None:
    """Run the command line; what the user can mend is said in one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(f"landscape: {error}", err=True)
        sys.exit(1)
