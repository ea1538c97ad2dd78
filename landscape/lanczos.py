"""The Lanczos process: an orthonormal basis Q of the Krylov space and the tridiagonal T = Q H Q'.

With the rows of Q (m, n) as basis vectors, one product with H adds a row:

    H q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}.

Orthogonality is kept by orthogonalising each new vector twice against all of Q, by two matrix-vector
products each time ("twice is enough", Giraud, Langou, Rozloznik & van den Eshof 2005).
"""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.operators import LinearOperator
from landscape.randomness import unit

__all__ = ["Lanczos"]


class Lanczos:
    """A Lanczos run that can be continued.

    Attributes:
        alphas: the diagonal of T, one entry per step done.
        betas: beta_j, one per step done; the last is the norm of what the next vector starts from.
        invariant: True once the Krylov space is closed under H (a breakdown): beta is then zero to
            rounding, T's eigenvalues are eigenvalues of H, and only :meth:`restart` can go on.

    Example:
        >>> from landscape.operators import Dense
        >>> run = Lanczos(Dense(torch.diag(torch.tensor([1.0, 2.0]).double())), torch.ones(2))
        >>> run.extend(2)
        >>> run.ritz()[0]
        tensor([1., 2.], dtype=torch.float64)
    """

    def __init__(self, operator: LinearOperator, start: Tensor) -> None:
        """Begin at ``start`` (n,), which is normalised."""
        self.operator = operator
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.invariant = False
        self._norm = 0.0  # the running estimate of ||H||
        self._rows = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._next = self._unit(start.to(self._rows))

    @property
    def steps(self) -> int:
        """m, the steps done; each cost one product."""
        return len(self.alphas)

    @property
    def basis(self) -> Tensor:
        """Q, shape (m, n)."""
        return self._rows[: self.steps]

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
        """After a breakdown, go on from a random vector orthogonal to the basis.

        T then falls into blocks, and H's multiple eigenvalues show as eigenvalues of several blocks.
        Does nothing when the basis spans the whole space.
        """
        if self.steps < self.operator.size:
            fresh = unit(self.operator.size, generator, self.operator.dtype, self.operator.device)
            self._next = self._unit(self._orthogonalise(fresh))
            self.invariant = False

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,), ascending, and eigenvectors (m, m) of T, float64 on the CPU.

        Always by torch's eigh: NumPy's and SciPy's leave BLAS threads spinning, which slows the
        gradients that follow 2.5 times.
        """
        alphas = torch.tensor(self.alphas, dtype=torch.float64)
        betas = torch.tensor(self.betas[:-1], dtype=torch.float64)
        values, vectors = torch.linalg.eigh(torch.diag(alphas) + torch.diag(betas, 1) + torch.diag(betas, -1))
        return values, vectors

    def _step(self) -> None:
        q = self._next
        self._rows[self.steps] = q
        w = self.operator.matvec(q)
        norm = float(w.norm())
        if not norm < float("inf"):
            raise FloatingPointError(
                f"the product of step {self.steps} is not finite: the loss or its derivatives "
                "overflow at theta, so check f(theta) and its gradient there first"
            )
        self.alphas.append(float(q @ w))
        w = self._orthogonalise(w)
        beta = float(w.norm())
        # what orthogonalising leaves of a vector inside the space is its rounding error
        eps = torch.finfo(self.operator.dtype).eps
        self._norm = max(self._norm, norm)
        rounding = 10 * eps * self._norm * self.steps**0.5
        self.invariant = beta <= rounding or self.steps == self.operator.size
        self.betas.append(0.0 if self.invariant else beta)
        if not self.invariant:
            self._next = w / beta

    def _orthogonalise(self, w: Tensor) -> Tensor:
        for _ in range(2):
            w = w - self.basis.T @ (self.basis @ w)
        return w

    def _unit(self, vector: Tensor) -> Tensor:
        norm = vector.norm()
        if not 0 < float(norm) < float("inf"):
            raise ValueError(f"start has norm {float(norm)}: give a finite vector that is not zero")
        return vector / norm

    def _reserve(self, rows: int) -> None:
        rows = min(rows, self.operator.size)
        if rows > len(self._rows):
            grown = self._rows.new_empty(rows, self.operator.size)
            grown[: self.steps] = self.basis
            self._rows = grown
