"""The Lanczos process: an orthonormal basis Q of a Krylov space, and the projection T = Q H Q'.

With the rows of Q (m, n) as basis vectors, one product with H adds a row:

    H q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}.

Orthogonality is kept by orthogonalising each new vector twice against all of Q, by two matrix-vector products each
time ("twice is enough", Giraud, Langou, Rozloznik & van den Eshof 2005). Sums over n are those of ``landscape.sums``.

To bound memory, :meth:`Lanczos.compress` replaces Q by some of its Ritz vectors and continues (thick restart, Wu &
Simon 2000): T is then their values on the diagonal, bordered by their couplings to the next vector.
:meth:`Lanczos.lock` keeps Ritz vectors and restarts in their complement, which contains further copies of multiple
eigenvalues. Their residuals are kept as well: with F (l, n) the next vectors that were dropped, orthogonalised against
the basis vectors added since, and c the coupling to the present next vector q,

    H Q' = Q' T + F' G + q c',

exactly, so that T is the projection after locking too, and residuals can be computed.

:class:`Recurrence` does the same without a basis, in three vectors. Orthogonality is then lost, and copies of
converged eigenvalues appear as "ghosts"; the quadrature rule stays accurate (Greenbaum 1989), so a density may use it.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from landscape.operators import LinearOperator, finite_norm
from landscape.randomness import unit
from landscape.sums import against, dot, norm

__all__ = ["Lanczos", "Recurrence"]

_COLUMNS = 65_536  # of Q that a compression works on at once, so that it needs no second Q


class Lanczos:
    """A Lanczos run that can be continued, compressed, saved and resumed.

    Attributes:
        steps: m, the vectors of the basis.
        products: products with H spent.
        beta: the norm of the next vector before normalisation.
        invariant: True once the space is closed under H (a breakdown), but for what locking dropped: beta is then zero
            to rounding, and only :meth:`restart` can continue.

    Example:
        >>> from landscape.operators import Dense
        >>> run = Lanczos(Dense(torch.diag(torch.tensor([1.0, 2.0]).double())), torch.ones(2))
        >>> run.extend(2)
        >>> run.ritz()[0]
        tensor([1., 2.], dtype=torch.float64)
    """

    def __init__(self, operator: LinearOperator, start: Tensor, *, room: int = 0) -> None:
        """Start at ``start`` (n,), which is normalised; reserve ``room`` vectors, since growing needs Q twice."""
        self.operator = operator
        self.steps = 0
        self.products = 0
        self.beta = 0.0
        self.invariant = False
        self._norm = 0.0  # the running estimate of ||H||
        self._rows = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._t = torch.zeros(0, 0, dtype=torch.float64)  # T, and room for more
        self._coupling = torch.zeros(0, dtype=torch.float64)  # c
        self._dropped = self._rows.clone()  # F
        self._shares = torch.zeros(0, 0, dtype=torch.float64)  # G, (l, m)
        self._next = _unit(start.to(self._rows))
        self._reserve(room)

    @property
    def basis(self) -> Tensor:
        """Q, shape (m, n)."""
        return self._rows[: self.steps]

    @property
    def projection(self) -> Tensor:
        """T, shape (m, m), float64 on the CPU: tridiagonal unless compressed or restarted."""
        return self._t[: self.steps, : self.steps]

    def extend(self, steps: int) -> None:
        """Do ``steps`` more steps, or fewer if the space becomes invariant.

        Raises:
            FloatingPointError: a product with H is not finite.
        """
        self._reserve(self.steps + steps)
        for _ in range(steps):
            if self.invariant:
                return
            self._step()

    def restart(self, generator: torch.Generator) -> None:
        """Continue from a random vector orthogonal to the basis, which counts as invariant.

        T then is block diagonal, and H's multiple eigenvalues show as eigenvalues of several blocks.
        Does nothing when the basis spans the whole space.
        """
        if self.steps < self.operator.size:
            fresh = unit(self.operator.size, generator, self.operator.dtype, self.operator.device)
            self._next = _unit(self._orthogonalise(fresh))
            self._coupling = torch.zeros(self.steps, dtype=torch.float64)
            self.beta = 0.0
            self.invariant = False

    def compress(self, values: Tensor, vectors: Tensor) -> None:
        """Keep only some Ritz pairs as the basis, and continue with the present next vector.

        Args:
            values: of :meth:`ritz`, those to keep (p,).
            vectors: the columns of :meth:`ritz` that belong to them, (m, p).
        """
        s = vectors.T.to(self._rows)
        for at in range(0, self.operator.size, _COLUMNS):
            block = slice(at, at + _COLUMNS)
            self._rows[: len(values), block] = s @ self.basis[:, block]
        self.steps = len(values)
        self._t[: self.steps, : self.steps] = torch.diag(values)
        self._coupling = self._coupling @ vectors
        self._shares = self._shares @ vectors

    def lock(self, values: Tensor, vectors: Tensor, generator: torch.Generator) -> None:
        """Keep some converged Ritz pairs as the basis, and restart in their orthogonal complement.

        One more vector (n,) is kept from then on, for their residuals.
        """
        self.compress(values, vectors)
        self._dropped = torch.cat([self._dropped, self._next[None]])
        self._shares = torch.cat([self._shares, self._coupling[None]])
        self.restart(generator)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,), ascending, and eigenvectors (m, m) of T, float64 on the CPU.

        Always by torch's eigh: NumPy's and SciPy's leave BLAS threads spinning, which slows the
        gradients that follow 2.5 times.
        """
        values, vectors = torch.linalg.eigh(self.projection)
        return values, vectors

    def residuals(self, vectors: Tensor) -> Tensor:
        """||H y - theta y|| (p,) of Ritz pairs with the coordinates (m, p) that :meth:`ritz` gives, without a product.

        That is |beta s_m| (Parlett 1998), and after :meth:`lock` the norm of F'G s + q c's.
        """
        beyond = (self._coupling @ vectors)[None]
        if len(self._dropped) == 0:
            return beyond[0].abs()
        rows = torch.cat([self._dropped, self._next[None]])
        parts = torch.cat([self._shares @ vectors, beyond])
        gram = torch.stack([against(rows, row) for row in rows]).cpu()
        squares = (parts * (gram @ parts)).sum(dim=0)
        return squares.clamp(min=0).sqrt()

    def combine(self, vectors: Tensor) -> Tensor:
        """The vectors in n dimensions (n, p) of coordinates (m, p) in the basis."""
        return self.basis.T @ vectors.to(self._rows)

    def state(self) -> dict[str, Any]:
        """All that :meth:`resume` needs, as tensors and numbers."""
        # clones: a view would be saved with all the room that was reserved
        arrays = {"basis": self.basis.clone(), "projection": self.projection.clone()}
        return {**{name: getattr(self, name) for name in self._STATE}, **arrays}

    @classmethod
    def resume(cls, operator: LinearOperator, state: dict[str, Any], *, room: int = 0) -> Lanczos:
        """A run that continues from ``state``, bit for bit as the saved one would have."""
        run = cls(operator, state["_next"], room=max(room, state["steps"]))
        for name in cls._STATE:
            setattr(run, name, state[name])
        # a copy, since a step changes it
        run._next, run._dropped = run._next.to(run._rows), run._dropped.to(run._rows, copy=True)
        run.basis.copy_(state["basis"])
        run.projection.copy_(state["projection"])
        return run

    _STATE = ("steps", "products", "beta", "invariant", "_norm", "_coupling", "_dropped", "_shares", "_next")

    def _step(self) -> None:
        q, j = self._next, self.steps
        overlaps = against(self._dropped, q).cpu()
        for dropped, share in zip(self._dropped, overlaps.tolist(), strict=True):
            dropped -= share * q
        self._rows[j] = q
        self._t[:j, j] = self._t[j, :j] = self._coupling + overlaps @ self._shares
        # the residual of the new vector is entirely along the next one
        self._shares = torch.nn.functional.pad(self._shares, (0, 1))
        w = self.operator.matvec(q)
        self.products += 1
        self._norm = max(self._norm, finite_norm(w, f"product {self.products}"))
        self._t[j, j] = dot(q, w)
        self.steps += 1
        w = self._orthogonalise(w)
        beta = norm(w)
        self.invariant = beta <= _rounding(self.operator, self._norm, self.steps) or self.steps == self.operator.size
        self.beta = 0.0 if self.invariant else beta
        self._coupling = torch.zeros(self.steps, dtype=torch.float64)
        self._coupling[-1] = self.beta
        if not self.invariant:
            self._next = w.div_(beta)

    def _orthogonalise(self, w: Tensor) -> Tensor:
        q = self.basis
        w = w - q.T @ against(q, w).to(w)
        return w.sub_(q.T @ against(q, w).to(w))

    def _reserve(self, rows: int) -> None:
        rows = min(rows, self.operator.size)
        if rows > len(self._rows):
            grown = self._rows.new_empty(rows, self.operator.size)
            grown[: self.steps] = self.basis
            t = torch.zeros(rows, rows, dtype=torch.float64)
            t[: self.steps, : self.steps] = self.projection
            self._rows, self._t = grown, t


class Recurrence:
    """The recurrence without a basis, for quadrature only; it needs three vectors.

    Attributes:
        steps: m, the steps done; each cost one product.
        beta: the norm of the next vector before normalisation.
        invariant: True once the Krylov space is closed under H.
    """

    def __init__(self, operator: LinearOperator, start: Tensor) -> None:
        """Start at ``start`` (n,), which is normalised."""
        self.operator = operator
        self.invariant = False
        self._alphas: list[float] = []
        self._betas: list[float] = []
        self._norm = 0.0  # the running estimate of ||H||
        self._next = _unit(start)
        self._before = torch.zeros_like(self._next)

    @property
    def steps(self) -> int:
        """m."""
        return len(self._alphas)

    @property
    def beta(self) -> float:
        """The last of the betas."""
        return self._betas[-1]

    def extend(self, steps: int) -> None:
        """Do ``steps`` more steps, or fewer if the space becomes invariant."""
        for _ in range(steps):
            if self.invariant:
                return
            q = self._next
            w = self.operator.matvec(q)
            self._norm = max(self._norm, finite_norm(w, f"product {self.steps + 1}"))
            self._alphas.append(dot(q, w))
            # into the previous vector's memory, not the product's, which may belong to the operator
            w = torch.sub(w, self._before, alpha=self._betas[-1] if self._betas else 0.0, out=self._before)
            w.sub_(q, alpha=self._alphas[-1])
            beta = norm(w)
            self.invariant = beta <= _rounding(self.operator, self._norm, self.steps)
            self._betas.append(0.0 if self.invariant else beta)
            if not self.invariant:
                self._before, self._next = q, w.div_(beta)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,), ascending, and eigenvectors (m, m) of T, float64 on the CPU."""
        off = torch.tensor(self._betas[:-1], dtype=torch.float64)
        diagonal = torch.diag(torch.tensor(self._alphas, dtype=torch.float64))
        values, vectors = torch.linalg.eigh(diagonal + torch.diag(off, 1) + torch.diag(off, -1))
        return values, vectors

    def state(self) -> dict[str, Any]:
        """All that :meth:`resume` needs, as tensors and numbers."""
        return {name: getattr(self, name) for name in self._STATE}

    @classmethod
    def resume(cls, operator: LinearOperator, state: dict[str, Any]) -> Recurrence:
        """A run that continues from ``state``, bit for bit as the saved one would have."""
        run = cls(operator, state["_next"])
        for name, value in ((name, state[name]) for name in cls._STATE):
            # a copy, since a step overwrites its vectors in place
            setattr(run, name, value.to(operator.device, copy=True) if isinstance(value, Tensor) else copy(value))
        return run

    _STATE = ("invariant", "_alphas", "_betas", "_norm", "_next", "_before")


def _unit(vector: Tensor) -> Tensor:
    length = norm(vector)
    if not 0 < length < float("inf"):
        raise ValueError(f"start has norm {length}: give a finite vector that is not zero")
    return vector / length


def _rounding(operator: LinearOperator, norm: float, steps: int) -> float:
    """The norm that rounding leaves of a vector inside the space after orthogonalisation."""
    return 10 * torch.finfo(operator.dtype).eps * norm * steps**0.5
