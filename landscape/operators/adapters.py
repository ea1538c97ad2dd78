"""Conversion of operators from other libraries and to SciPy, and a check of symmetry."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from landscape.objective import ModelObjective
from landscape.operators.curvature import GaussNewton, Hessian, Residual
from landscape.operators.operator import Dense, LinearOperator, finite_norm
from landscape.randomness import generator_or_new, normal
from landscape.sums import dot

__all__ = ["as_operator", "as_symmetric", "check_symmetric", "to_scipy"]


class _FromSciPy:
    """A ``scipy.sparse.linalg.LinearOperator``, which works on NumPy arrays on the CPU."""

    def __init__(self, operator: Any) -> None:
        _check_square(operator)
        self._operator = operator
        self.size = operator.shape[0]
        self.dtype = torch.float32 if operator.dtype == np.float32 else torch.float64
        self.device = torch.device("cpu")

    def matvec(self, v: Tensor) -> Tensor:
        return torch.as_tensor(self._operator.matvec(v.numpy()), dtype=self.dtype)


class _FromPyHessian:
    """A ``pyhessian.hessian``: its parameters and its product, on one flat vector."""

    def __init__(self, hessian: Any) -> None:
        self._hessian = hessian
        self._shapes = [p.shape for p in hessian.params]
        self.size = sum(p.numel() for p in hessian.params)
        self.dtype, self.device = hessian.params[0].dtype, hessian.params[0].device

    @torch.enable_grad()  # over a data loader it calls backward
    def matvec(self, v: Tensor) -> Tensor:
        pieces = v.split([shape.numel() for shape in self._shapes])
        directions = [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        if self._hessian.full_dataset:
            _, product = self._hessian.dataloader_hv_product(directions)
        else:
            # the gradient's graph was built by PyHessian's constructor and is kept for every product
            product = torch.autograd.grad(self._hessian.gradsH, self._hessian.params, directions, retain_graph=True)
        return torch.cat([p.detach().reshape(-1) for p in product])


class _FromCurvlinops:
    """A ``curvlinops`` operator, which multiplies flat tensors on its own device."""

    def __init__(self, operator: Any) -> None:
        _check_square(operator)
        self._operator = operator
        self.size = operator.shape[0]
        self.dtype, self.device = operator.dtype, operator.device

    def matvec(self, v: Tensor) -> Tensor:
        return (self._operator @ v).detach()


class _Checked:
    """An operator that has been checked for symmetry with a ``tol`` of the user's: it is not checked again."""

    def __init__(self, operator: LinearOperator) -> None:
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self.matvec = operator.matvec


class _ToSciPy(scipy.sparse.linalg.LinearOperator):
    """A LinearOperator of this package, for SciPy."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        # NumPy has no bfloat16, and in SciPy few routines take float16: float32 holds both exactly
        dtype = np.float64 if operator.dtype == torch.float64 else np.float32
        super().__init__(dtype, (operator.size, operator.size))

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        # a copy, since SciPy's vectors may be read-only or views of what it is about to overwrite
        v = torch.tensor(x.reshape(-1), dtype=self.operator.dtype, device=self.operator.device)
        return self.operator.matvec(v).detach().cpu().double().numpy().astype(self.dtype)

    def _adjoint(self) -> _ToSciPy:
        return self


def as_operator(source: Any, *, tol: float | None = None) -> LinearOperator:
    """Convert anything with a symmetric product to a LinearOperator of this package.

    That the product is symmetric is checked here of matrices only. ``eigenpairs``, ``spectral_density`` and ``trace``
    check it of whatever is not of ours, the Hessian of another Objective than ModelObjective included, by two products
    (``check_symmetric``). Where products are known to fewer digits than their dtype has, as finite differences are, say
    so by ``tol``: it is then checked here and no more. ``local_entropy``, which makes a Hessian itself, takes what was
    found with such an operator as its ``pairs`` and ``density``.

    Args:
        source: one of ours; a square tensor or array; a ``scipy.sparse.linalg.LinearOperator``; a
            ``pyhessian.hessian`` object; or an operator of ``curvlinops``. What ``to_scipy`` made is unwrapped.
        tol: relative asymmetry that passes, as ``check_symmetric`` takes it. Default: not checked here.

    Raises:
        TypeError: ``source`` is of another type.
        ValueError: a matrix that is not square, floating and symmetric, or an operator that is not square; with
            ``tol``, one that is less symmetric than that, or a tol that is not positive.

    Example:
        >>> import torch
        >>> as_operator(torch.diag(torch.tensor([1.0, 2.0]))).matvec(torch.ones(2))
        tensor([1., 2.])
    """
    if tol is not None:
        check_symmetric(source, torch.Generator().manual_seed(0), tol=tol)
        return _Checked(as_operator(source))
    if isinstance(source, _ToSciPy):
        return source.operator
    if isinstance(source, scipy.sparse.linalg.LinearOperator):
        return _FromSciPy(source)
    if isinstance(source, LinearOperator):
        return source
    if isinstance(source, Tensor | np.ndarray):
        return Dense(torch.as_tensor(source))
    # by name, so that neither package is imported, and curvlinops need not be installed
    if type(source).__module__.partition(".")[0] == "pyhessian":
        return _FromPyHessian(source)
    names = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(source).__mro__}
    if "curvlinops.PyTorchLinearOperator" in names:
        return _FromCurvlinops(source)
    raise TypeError(
        f"source={source!r} of type {type(source).__name__} is no operator: give an object with size, "
        "dtype, device and matvec(v), a square tensor, a SciPy or curvlinops linear operator, or a pyhessian.hessian"
    )


def as_symmetric(source: Any) -> LinearOperator:
    """``as_operator``, with ``check_symmetric`` of what is not of ours, for two products that no result counts.

    The derivatives of a function of the user's own are not of ours either.
    """
    operator = as_operator(source)
    known = isinstance(operator, Hessian | GaussNewton | Residual) and isinstance(operator.objective, ModelObjective)
    if not (known or isinstance(operator, Dense | _Checked)):
        check_symmetric(operator, torch.Generator().manual_seed(0))
    return operator


def to_scipy(operator: Any) -> Any:
    """A symmetric operator for SciPy's routines, such as ``scipy.sparse.linalg.eigsh``.

    Args:
        operator: anything that ``as_operator`` takes; n is its size. Products are still done by it, on its device.

    Returns:
        ``scipy.sparse.linalg.LinearOperator`` of shape (n, n) and dtype float64, or float32 for any other dtype than
        float64. It is its own adjoint.

    Raises:
        TypeError, ValueError: as ``as_operator`` does.

    Example:
        >>> import torch
        >>> matrix = torch.diag(torch.arange(9.0))
        >>> scipy.sparse.linalg.eigsh(to_scipy(matrix), k=2, return_eigenvectors=False).round(3)
        array([7., 8.], dtype=float32)
    """
    return _ToSciPy(as_operator(operator))


def check_symmetric(operator: Any, generator: torch.Generator | None = None, *, tol: float | None = None) -> None:
    """Check that an operator's product is symmetric, by two products.

    With u and v drawn from N(0, I), u'Av - v'Au = u'(A - A')v has the standard deviation ||(A - A')v|| given v. It is
    compared with ||Av|| + ||Au||, so the ratio is the relative asymmetry times a standard normal number, whatever n
    is: an asymmetry of s passes with a probability of about 0.8 tol/s.

    Args:
        operator: anything that ``as_operator`` takes; n is its size.
        generator: of u and v. Default: seeded by the operating system.
        tol: relative asymmetry that passes. Default: the square root of the dtype's eps, 3e-4 in float32 and 1.5e-8 in
            float64. That is half of the digits: far more than sums in another order lose, far less than an error in
            a formula makes.

    Raises:
        ValueError: it is not symmetric, or tol is not positive.
        FloatingPointError: a product is not finite.

    Example:
        >>> import torch
        >>> check_symmetric(torch.diag(torch.arange(9.0)))
    """
    operator = as_operator(operator)
    if tol is None:
        tol = torch.finfo(operator.dtype).eps ** 0.5
    if not tol > 0:
        raise ValueError(f"tol={tol}: give a positive relative asymmetry, such as 1e-4, or None")
    generator = generator_or_new(generator)
    u, v = (normal(operator.size, generator, operator.dtype, operator.device) for _ in range(2))
    (one, av), (other, au) = (_form(operator, *pair) for pair in ((u, v), (v, u)))
    scale = av + au
    if abs(one - other) > tol * scale:
        raise ValueError(
            f"operator is not symmetric: for two random vectors u'Av = {one:.9g} but v'Au = {other:.9g}, apart by more "
            f"than tol={tol:.2g} times ||Av|| + ||Au|| = {scale:.3g}. Give a symmetric one, such as (A + A') / 2; fix "
            "what it is of, if each call draws other data or dropout; or give as_operator(operator, tol=1e-3) in its "
            "place, if its products are known to no more than that, as those of TF32 or of finite differences are"
        )


def _form(operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[float, float]:
    """u'Av and ||Av||, added in float64, so that only the product itself is rounded."""
    av = operator.matvec(v).detach().to(u.device)
    return dot(u, av), finite_norm(av, "the product of operator with a random vector")


def _check_square(operator: Any) -> None:
    if operator.shape[0] != operator.shape[1]:
        raise ValueError(f"operator has shape {tuple(operator.shape)}: give a square one")
