"""The cost and accuracy of spectra, compared with PyHessian, curvlinops and hessian-eigenthings.

    python benchmarks/spectrum.py MNIST --landscaper PYTHON    # the folder with MNIST's four IDX files

All are given the same network and data; those that take batches get ours. Times are medians over rounds in which all
take their turn. Products are counted where they are made. "Plain gradient" is torch's own, in the same batches.
The truth for LeNet is a run of ours of 200 products; for the digits MLP, all eigenvalues of its Hessian in float64.
PyHessian's density calls torch.eig, which torch no longer has: it gets torch.linalg.eigh in its place. Landscaper, a
copy of PyHessian that can keep graphs, needs NumPy 1.26, hence PYTHON, an interpreter in whose environment it is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import curvlinops
import hessian_eigenthings as het
import numpy as np
import pyhessian
import pyhessian.hessian
import scipy.sparse.linalg
import torch
from elsewhere import elsewhere
from networks import medians, resnet20, trained_digits_mlp, trained_lenet
from torch import Tensor, nn

from landscape import Hessian, ModelObjective, eigenpairs, spectral_density
from landscape.spectrum import trace

BATCH = 128
K = 10


class Counted:
    """A function with the number of its calls."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        return self.function(*args, **kwargs)

    def since(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


def batches_of(data: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.split(BATCH) for part in data), strict=True))


def hessian_of(who: str, model: nn.Module, data: tuple[Tensor, Tensor]) -> Any:
    """The same Hessian as an operator of each package."""
    loss, batches = nn.CrossEntropyLoss(), batches_of(data)
    if who == "PyHessian":
        return pyhessian.hessian(model, loss, dataloader=batches, cuda=False)
    if who == "curvlinops":
        params = list(model.parameters())
        return curvlinops.HessianLinearOperator(model, loss, params, batches, check_deterministic=False)
    if who == "hessian-eigenthings":
        return het.HessianOperator(model, batches, lambda m, batch: loss(m(batch[0]), batch[1]))
    memory = 0 if who == "ours, no graphs kept" else "auto"
    return Hessian(ModelObjective(model, loss, data, batch_size=BATCH, graph_memory=memory))


def pieces_of(v: Tensor, params: list[nn.Parameter]) -> list[Tensor]:
    return [piece.view_as(p) for piece, p in zip(v.split([p.numel() for p in params]), params, strict=True)]


def product(operator: object, v: Tensor, params: list[nn.Parameter]) -> Callable[[], object]:
    if isinstance(operator, pyhessian.hessian):
        pieces = pieces_of(v, params)
        return lambda: operator.dataloader_hv_product(pieces)
    if isinstance(operator, Hessian | het.HessianOperator):
        return lambda: operator.matvec(v)
    return lambda: operator @ v


def landscaper_hessian(model: nn.Module, batches: object, v: object) -> Callable[[str, int], float]:
    """Seconds of the requested analysis. Runs in Landscaper's environment."""
    import time

    from landscaper.hessian import PyHessian

    def make() -> object:
        return PyHessian(model, torch.nn.CrossEntropyLoss(), batches, "cpu", try_cache=True)

    hessian = make()

    def seconds(what: str, steps: int = 0) -> float:
        start = time.perf_counter()
        if what == "product":
            hessian.hv_product(v)
        else:
            make().density(iter=steps, n_v=1)
        return time.perf_counter() - start

    return seconds


@contextmanager
def with_landscaper(
    python: str | None, model: nn.Module, data: tuple[Tensor, Tensor], v: Tensor
) -> Iterator[dict[str, Callable[..., float]]]:
    """Landscaper by its name, if an interpreter for it is given."""
    if python is None:
        yield {}
        return
    given = (torch.fx.symbolic_trace(model), batches_of(data), pieces_of(v, list(model.parameters())))
    with elsewhere(python, landscaper_hessian, given) as ask:
        yield {"Landscaper": ask}


def products(name: str, model: nn.Module, data: tuple[Tensor, Tensor], python: str | None) -> None:
    params = list(model.parameters())
    v = torch.randn(sum(p.numel() for p in params))

    def gradient() -> None:
        for x, y in batches_of(data):
            torch.autograd.grad(nn.functional.cross_entropy(model(x), y), params)

    whose = ("ours", "ours, no graphs kept", "PyHessian", "curvlinops", "hessian-eigenthings")
    functions = {who: product(hessian_of(who, model, data), v, params) for who in whose}
    with with_landscaper(python, model, data, v) as landscaper:
        others = {who: partial(ask, "product") for who, ask in landscaper.items()}
        times = medians({"plain gradient": gradient, **functions, **others})
    for who, seconds in times.items():
        print(f"| {name} | {who} | {1e3 * seconds:.0f} ms | {seconds / times['plain gradient']:.2f} |", flush=True)


def layouts(name: str, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """The separate gains of folding BatchNorm and of the channels-last format."""
    kinds = ("both", "channels last alone", "folding alone", "neither")
    functions: dict[str, Callable[[], object]] = {}
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    for kind in kinds:
        f = ModelObjective(model, nn.CrossEntropyLoss(), data, batch_size=BATCH)
        if kind in ("channels last alone", "neither"):
            f._evaluation.folds.clear()
        if kind in ("folding alone", "neither"):
            f._batches[:] = [
                ((x.clone(memory_format=torch.contiguous_format), y), count) for (x, y), count in f._batches
            ]
        functions[f"value, {kind}"] = partial(f.value, f.theta)
        functions[f"gradient, {kind}"] = partial(f.gradient, f.theta)
        functions[f"product, {kind}"] = partial(f.hvp, f.theta, v)
    times = medians(functions)
    for kind in kinds:
        cells = [f"{1e3 * times[f'{what}, {kind}']:.0f} ms" for what in ("value", "gradient", "product")]
        print(f"| {name} | {kind} | {' | '.join(cells)} |", flush=True)


def micro_batches(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """Our product at several micro-batch sizes."""
    sizes = (64, 128, 256, 512, 1024)
    objectives = [ModelObjective(model, nn.CrossEntropyLoss(), data, batch_size=size) for size in sizes]
    v = torch.randn(objectives[0].size)
    times = medians({str(f_size): partial(f.hvp, f.theta, v) for f_size, f in zip(sizes, objectives, strict=True)})
    for size, seconds in times.items():
        print(f"| LeNet | {size} | {1e3 * seconds:.0f} ms |", flush=True)


def pairs_of(who: str, operator: object, which: str) -> tuple[np.ndarray, int, float]:
    """Eigenvalues, products and seconds of a package, with the settings of its documentation."""
    k, start = (K if which == "magnitude" else 3), time.perf_counter()
    if who == "ours":
        pairs = eigenpairs(operator, k, which=which, copies=False, generator=torch.Generator().manual_seed(0))
        return pairs.values, pairs.products, time.perf_counter() - start
    if who == "curvlinops":
        counted = Counted(operator.__matmul__)
        linear = scipy.sparse.linalg.LinearOperator(
            (operator.shape[0],) * 2, lambda v: counted(torch.from_numpy(v)).numpy(), dtype=np.float32
        )
        v0 = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
        values = scipy.sparse.linalg.eigsh(
            linear, k, which="LM" if which == "magnitude" else "SA", tol=1e-3, v0=v0, return_eigenvectors=False
        )
        return values, counted.calls, time.perf_counter() - start
    if who == "hessian-eigenthings":
        operator.matvec = Counted(operator.matvec)
        found = het.lanczos(
            operator,
            k=k,
            which="LM" if which == "magnitude" else "SA",
            seed=0,
            **({} if which == "magnitude" else {"max_iter": 80, "reorthogonalize": True}),
        )
        return found.eigenvalues.numpy(), operator.matvec.since(), time.perf_counter() - start
    counted = Counted(type(operator).dataloader_hv_product)
    operator.dataloader_hv_product = lambda v: counted(operator, v)
    values, _ = operator.eigenvalues(maxIter=100, tol=1e-3, top_n=k)
    return np.array(values), counted.calls, time.perf_counter() - start


def eigenvalues(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    exact = eigenpairs(
        hessian_of("ours", model, data),
        2 * K,
        which="both",
        tol=1e-6,
        copies=False,
        max_products=200,
        generator=torch.Generator().manual_seed(1),
    )
    values = exact.values
    truth = {"magnitude": values[np.argsort(-abs(values))][:K], "smallest": np.sort(values)[:3]}
    off = exact.residuals.max() / abs(truth["smallest"][-1])
    print(f"truth: largest residual {off:.0e} of the third most negative, {truth['smallest'][-1]:.3g}", flush=True)

    def error(values: np.ndarray, exact: np.ndarray, descending: bool = True) -> float:
        order = np.argsort(-abs(values)) if descending else np.argsort(values)
        return float(abs(values[order] / exact - 1).max())

    for who in ("ours", "PyHessian", "curvlinops", "hessian-eigenthings"):
        values, made, seconds = pairs_of(who, hessian_of(who, model, data), "magnitude")
        print(
            f"| {K} by magnitude | {who} | {made} | {seconds:.1f} s | {error(values, truth['magnitude']):.0e} |",
            flush=True,
        )
        if who in ("curvlinops", "hessian-eigenthings"):
            more, extra, longer = pairs_of(who, hessian_of(who, model, data), "smallest")
            off = max(error(values, truth["magnitude"]), error(more, truth["smallest"], descending=False))
            print(
                f"| and 3 most negative | {who} | {made + extra} | {seconds + longer:.1f} s | {off:.0e} |", flush=True
            )
    # one run of ours for both ends, with the error bounds from its residuals
    start = time.perf_counter()
    run = eigenpairs(
        hessian_of("ours", model, data),
        2 * K,
        which="both",
        copies=False,
        max_products=75,
        generator=torch.Generator().manual_seed(0),
    )
    seconds = time.perf_counter() - start
    off = max(error(run.values[:K], truth["magnitude"]), error(run.values[K:][:3], truth["smallest"], descending=False))
    sure = (run.residuals / abs(run.values))[: K + 3].max()
    who = f"ours, one run: residuals at most {sure:.0e} of each"
    print(f"| and 3 most negative | {who} | {run.products} | {seconds:.1f} s | {off:.0e} |", flush=True)


def distances(nodes: np.ndarray, masses: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Kolmogorov-Smirnov, at a width of a thousandth of the range, and Wasserstein-1 in units of lambda_max."""
    from scipy.stats import norm, wasserstein_distance

    width = 1e-3 * np.ptp(exact)
    t = np.concatenate([np.linspace(exact[0], exact[-1], 3000), np.linspace(-5 * width, 5 * width, 1000)])[:, None]
    ours = (norm.cdf((t - nodes) / width) * masses).sum(axis=1)
    ks = abs(ours - norm.cdf((t - exact) / width).mean(axis=1)).max()
    return float(ks), wasserstein_distance(nodes, exact, masses) / exact[-1]


def _old_eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """What torch.eig was: real and imaginary parts of the eigenvalues, and the eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def density(who: str, operator: object, steps: int, probes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and masses."""
    torch.eig = _old_eig  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    if who == "ours":
        generator = torch.Generator().manual_seed(seed)
        return spectral_density(operator, steps=steps, probes=probes, generator=generator).atoms()
    if who == "PyHessian":
        found, weights = operator.density(iter=steps, n_v=probes)
        return np.concatenate(found), np.concatenate(weights) / probes
    result = het.spectral_density(operator, num_runs=probes, lanczos_steps=steps, seed=seed)
    return result.raw_eigenvalues.numpy().ravel(), result.raw_weights.numpy().ravel() / probes


def density_times(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, python: str | None) -> None:
    """Seconds for one probe, including the construction of cached graphs."""
    rivals = {
        who: lambda who=who: density(who, hessian_of(who, model, data), steps, probes=1, seed=0)
        for who in ("ours", "PyHessian", "hessian-eigenthings")
    }
    with with_landscaper(python, model, data, torch.zeros(sum(p.numel() for p in model.parameters()))) as landscaper:
        others = {who: partial(ask, "density", steps) for who, ask in landscaper.items()}
        for who, seconds in medians({**rivals, **others}, rounds=2).items():
            print(f"| {who} | {seconds:.1f} s |", flush=True)


def density_errors(
    model: nn.Module, data: tuple[Tensor, Tensor], exact: np.ndarray, steps: int, probes: int, seeds: int = 20
) -> None:
    for who in ("ours", "PyHessian", "hessian-eigenthings"):
        hessian = hessian_of(who, model, data)
        found = [distances(*density(who, hessian, steps, probes, seed), exact) for seed in range(seeds)]
        (ks, w), (ks_error, w_error) = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / seeds**0.5
        print(f"| {who} | {ks:.4f} ± {ks_error:.4f} | {w:.1e} ± {w_error:.0e} |", flush=True)


def traces(model: nn.Module, data: tuple[Tensor, Tensor], exact: np.ndarray, seeds: int = 100) -> None:
    every = {who: hessian_of(who, model, data) for who in ("ours", "curvlinops", "hessian-eigenthings")}

    def ours(method: str, budget: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return trace(every["ours"], method=method, products=budget, generator=generator).value

    def theirs(method: str, budget: int, seed: int) -> float:
        return float(het.trace(every["hessian-eigenthings"], num_matvecs=budget, method=method, seed=seed).estimate)

    def curvlinops_has(method: str, budget: int, seed: int) -> float:
        torch.manual_seed(seed)
        name = {"hutchinson": "hutchinson_trace", "hutch++": "hutchpp_trace", "xtrace": "xtrace"}[method]
        # its Hutch++ needs a number of products that is divisible by 3
        return float(getattr(curvlinops, name)(every["curvlinops"], budget - budget % 3 * (method == "hutch++")))

    for budget in (30, 100):
        for who, estimate, methods in (
            ("ours", ours, ("hutchinson", "hutch++", "xtrace")),
            ("hessian-eigenthings", theirs, ("hutchinson", "hutch++")),
            ("curvlinops", curvlinops_has, ("hutchinson", "hutch++", "xtrace")),
        ):
            for method in methods:
                errors = [estimate(method, budget, seed) / exact.sum() - 1 for seed in range(seeds)]
                print(f"| {budget} | {who}, {method} | {100 * np.sqrt(np.mean(np.square(errors))):.2f} % |", flush=True)


def memory(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """The growth of the process between the 10th and the 310th product, and the peak memory of a density."""
    hessian = hessian_of("ours", model, data)
    v = torch.ones(hessian.size)
    for i in range(310):
        if i == 10:
            before = status("VmRSS")
        hessian.matvec(v)
    print(f"\nResident memory over 300 products on LeNet: {(status('VmRSS') - before) / 2**20:+.1f} MiB")
    # without the freed buffers that MKL keeps for its next matrix product, 0.8 vectors here
    environment = {**os.environ, "MKL_DISABLE_FAST_MM": "1"}
    command = [sys.executable, __file__, "--wide"]
    grown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    print(f"Density in the low-memory mode: {grown.strip()} vectors of 25 million beyond the network, graph included")


def low_memory_density() -> float:
    """Peak memory of a density with ``low_memory`` beyond that of the network, in vectors of its 25 million weights."""
    wide = 3536
    spectral_density(torch.eye(2), steps=2, probes=1, low_memory=True)  # so that imports are not measured
    model = nn.Sequential(nn.Linear(wide, wide, bias=False), nn.Tanh(), nn.Linear(wide, wide, bias=False))
    before = status("VmRSS")
    f = ModelObjective(model, nn.MSELoss(), (torch.randn(8, wide), torch.randn(8, wide)), graph_memory=0)
    spectral_density(Hessian(f), steps=6, probes=2, low_memory=True)
    return (status("VmHWM") - before) / (4 * f.size)


def status(entry: str) -> int:
    """Bytes, of this process alone: ru_maxrss would be inherited from its parent."""
    return int(Path("/proc/self/status").read_text().partition(f"{entry}:")[2].split()[0]) * 1024


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("mnist", nargs="?", help="the folder with MNIST's four IDX files")
    parser.add_argument("--landscaper", metavar="PYTHON", help="the interpreter of an environment with Landscaper")
    parser.add_argument("--wide", action="store_true", help="measure the low-memory mode, and nothing else")
    given = parser.parse_args()
    if given.wide:
        print(f"{low_memory_density():.1f}")
        return
    lenet, images = trained_lenet(given.mnist)
    print("| network | product of | time | plain gradients |\n|---|---|---|---|")
    products("LeNet", lenet, images, given.landscaper)
    products("ResNet-20", *resnet20(), given.landscaper)
    print("\n| network | ours with | value | gradient | product |\n|---|---|---|---|---|")
    layouts("LeNet", lenet, images)
    layouts("ResNet-20", *resnet20())
    print("\n| network | micro-batch | product |\n|---|---|---|")
    micro_batches(lenet, images)
    print("\n| LeNet, wanted | by | products | time | largest relative error |\n|---|---|---|---|---|")
    eigenvalues(lenet, images)
    print("\n| LeNet, density of 100 steps, 1 probe | time |\n|---|---|")
    density_times(lenet, images, 100, given.landscaper)
    digits, examples, exact = trained_digits_mlp()
    print("\n| digits MLP, density of 80 steps, 4 probes | KS | Wasserstein-1 / lambda_max |\n|---|---|---|")
    density_errors(digits, examples, exact, steps=80, probes=4)
    print("\n| products for the trace | by | RMS error over 100 seeds |\n|---|---|---|")
    traces(digits, examples, exact)
    memory(lenet, (images[0][:128], images[1][:128]))


if __name__ == "__main__":
    main()
