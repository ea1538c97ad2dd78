"""Unbiased estimates of the trace of a symmetric operator A (n, n) from p products.

*Hutchinson* (1990): E v' A v = tr A for entries of v that are +1 or -1 with equal odds. Its variance, 2 sum_{i != j}
a_ij^2, is the least of all v with independent entries; Gaussian ones add 2 sum_i a_ii^2. Error: p^(-1/2).

*Hutch++* (Meyer, Musco, Musco & Woodruff 2021): with Q an orthonormal basis of A S, S random (n, k), and P = I - Q Q',

    tr A = tr Q' A Q + tr P A P,

the first exactly, the second by Hutchinson; k = p/3 products each for A S and A Q, the others for the rest. Error: 1/p.

*XTrace* (Epperly, Tropp & Webber 2024): the same with each of m = p/2 test vectors w_i the sample of the rest, and
the other m - 1 the sketch. The estimate is the mean over i of

    tr_i = tr Q_i' A Q_i + (n - m + 1) r_i' A r_i / r_i' r_i,    r_i = (I - Q_i Q_i') w_i,

with Q_i a basis of A W without column i. Scaling r_i to its mean length (section 2.3 there) takes from the error what
the length of r_i adds. All Q_i come from one factorisation A W = Q R: Q_i Q_i' = Q (I - s_i s_i') Q', where s_i is
column i of R^-T at unit length, since that is orthogonal to all other columns of R. The error falls as fast as the
spectrum does.

Of the vectors of shape (n,) only Q is stored. For r = w - Q c,

    r' A r = w'Aw - 2 c'(Q'Aw) + c'(Q'AQ)c,    r'r = w'w - 2 c'(Q'w) + c'c,

from small matrices that are filled as the products come; a test vector that is needed again is drawn again. All terms
are of the size of the trace, so that their difference loses no digit that the trace itself has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from landscape.operators import LinearOperator, finite_norm
from landscape.progress import Progress
from landscape.randomness import normal, unit
from landscape.sums import against, dot, norm

__all__ = ["METHODS", "Counted"]


class Counted:
    """An operator that counts its products; one that is not finite raises FloatingPointError."""

    def __init__(self, operator: LinearOperator, progress: Progress) -> None:
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self.progress = progress
        self.spent = 0
        self._operator = operator

    def matvec(self, v: Tensor) -> Tensor:
        """The product with ``v`` (n,)."""
        product = self._operator.matvec(v)
        self.spent += 1
        finite_norm(product, f"product {self.spent}")
        return product

    def diagonal_sum(self) -> float:
        """The exact trace, by n products."""
        total = 0.0
        for i in self.progress(range(self.size), "trace"):
            e = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            e[i] = 1
            total += float(self.matvec(e)[i])
        return total


class _Basis:
    """Q with orthonormal rows, as one block (k, n) for each extension, so that none is copied."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def times(self, v: Tensor, first: int = 0) -> Tensor:
        """Q v, from block ``first`` on: small, so float64 on the CPU."""
        parts = [against(block, v).cpu() for block in self.blocks[first:]]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def extend(self, sketch: Tensor, generator: torch.Generator) -> Tensor:
        """Orthonormalise the rows of ``sketch`` (k, n) in place, and append them to Q (m, n).

        Returns R (m, k) with sketch = R'Q. Not by Householder's QR: LAPACK's sums over n are too long for
        float32, and leave Q no more orthonormal than to 1e-3 at 8e6 weights.
        """
        before, k = sum(map(len, self.blocks)), len(sketch)
        r = torch.zeros(before + k, k, dtype=torch.float64)
        self.blocks.append(sketch[:0])
        for i, y in enumerate(sketch):
            length = norm(y)
            r[: before + i, i] = self._orthogonalise(y)
            left = norm(y)
            rounding = 10 * torch.finfo(y.dtype).eps * len(r) ** 0.5 * length
            if left > rounding:
                r[before + i, i] = left
            while not left > rounding:
                # A sum of other rows, to rounding: any direction will do in its place, since
                # tr A = tr Q' A Q + tr P A P holds for any Q
                y.copy_(unit(len(y), generator, y.dtype, y.device))
                self._orthogonalise(y)
                left, rounding = norm(y), 1e-3 * len(y) ** -0.5
            y /= left
            self.blocks[-1] = sketch[: i + 1]
        return r

    def _orthogonalise(self, y: Tensor) -> Tensor:
        """Make y (n,) orthogonal to Q, in place; returns Q y. Twice is enough (Giraud et al. 2005)."""
        total = torch.zeros(sum(map(len, self.blocks)), dtype=torch.float64)
        for _ in range(2):
            overlaps = self.times(y)
            for block, c in zip(self.blocks, overlaps.split([len(block) for block in self.blocks]), strict=True):
                y -= block.T @ c.to(y)
            total += overlaps
        return total


class _Estimator(ABC):
    """Draws whose mean is the trace; each call reuses the products of those before."""

    least = 4  # products for a standard error

    def __init__(self, operator: Counted, generator: torch.Generator) -> None:
        self.operator, self.generator = operator, generator
        self.basis = _Basis()
        self.h = torch.zeros(0, 0, dtype=torch.float64)  # Q' A Q
        self._states: list[Tensor] = []  # of the generator, before each test vector w

    @abstractmethod
    def draws(self, total: int) -> Tensor:
        """Estimates of the trace, one per sample, from ``total`` products in all."""

    def draw(self, of: Any, generator: torch.Generator | None = None) -> Tensor:
        """A vector from ``of``, a function such as those of ``landscape.randomness``."""
        return of(self.operator.size, generator or self.generator, self.operator.dtype, self.operator.device)

    def new_test_vector(self, of: Any) -> Tensor:
        """Draw a test vector, and remember the generator's state for ``redraw``."""
        self._states.append(self.generator.get_state())
        return self.draw(of)

    def redraw(self, of: Any, count: int) -> Iterator[Tensor]:
        """The first ``count`` test vectors, drawn again rather than stored."""
        generator = torch.Generator()
        for state in self._states[:count]:
            yield self.draw(of, generator.set_state(state))

    def rows(self, count: int) -> Tensor:
        """An uninitialised tensor for ``count`` vectors."""
        return torch.empty(count, self.operator.size, dtype=self.operator.dtype, device=self.operator.device)

    def multiply_basis(self, images: Tensor | None = None) -> None:
        """Multiply the new rows of Q by A: extends Q' A Q, and writes the products to ``images`` if given."""
        before, new = len(self.h), self.basis.blocks[-1]
        h = torch.zeros(before + len(new), before + len(new), dtype=torch.float64)
        h[:before, :before] = self.h
        for i in self.operator.progress(range(len(new)), "trace"):
            image = self.operator.matvec(new[i])
            h[:, before + i] = self.basis.times(image)
            if images is not None:
                images[i] = image
        h[before:, :before] = h[:before, before:].T
        self.h = h


class _Hutchinson(_Estimator):
    least = 2

    def __init__(self, operator: Counted, generator: torch.Generator) -> None:
        super().__init__(operator, generator)
        self._draws: list[float] = []

    def draws(self, total: int) -> Tensor:
        for _ in self.operator.progress(range(total - len(self._draws)), "trace"):
            v = self.draw(_signs)
            self._draws.append(dot(v, self.operator.matvec(v)))
        return torch.tensor(self._draws, dtype=torch.float64)


class _HutchPlusPlus(_Estimator):
    def __init__(self, operator: Counted, generator: torch.Generator) -> None:
        super().__init__(operator, generator)
        self._samples: list[tuple[Tensor, Tensor, float]] = []  # Q'w, Q'Aw and w'Aw

    def draws(self, total: int) -> Tensor:
        before = len(self._samples)
        k = min(total // 3, (total - before) // 2)
        sketch = self.rows(k - len(self.h))
        for i in self.operator.progress(range(len(sketch)), "trace"):
            # Gaussian: signs are orthogonal to an eigenvector such as (1, 1, 0, ..., 0) with odds above zero
            sketch[i] = self.operator.matvec(self.draw(normal))
        self.basis.extend(sketch, self.generator)
        # the samples are independent of Q, so the earlier ones are used with the larger Q as well
        images = torch.empty_like(sketch) if before else None
        self.multiply_basis(images)
        if images is not None:
            for i, w in enumerate(self.redraw(_signs, before)):
                g, b, own = self._samples[i]
                new = self.basis.times(w, -1), against(images, w).cpu()
                self._samples[i] = torch.cat([g, new[0]]), torch.cat([b, new[1]]), own
        del images
        for _ in self.operator.progress(range(total - 2 * k - before), "trace"):
            w = self.new_test_vector(_signs)
            image = self.operator.matvec(w)
            self._samples.append((self.basis.times(w), self.basis.times(image), dot(w, image)))
        rest = [own - float(2 * g @ b - g @ self.h @ g) for g, b, own in self._samples]
        return self.h.trace() + torch.tensor(rest, dtype=torch.float64)


class _XTrace(_Estimator):
    def __init__(self, operator: Counted, generator: torch.Generator) -> None:
        super().__init__(operator, generator)
        self._own: list[float] = []  # w'Aw
        self._lengths: list[float] = []  # w'w
        self._g = self._r = torch.zeros(0, 0, dtype=torch.float64)  # Q' W and R = Q' A W, (m, m)

    def draws(self, total: int) -> Tensor:
        n, m, before = self.operator.size, total // 2, len(self._own)
        sketch = self.rows(m - before)
        for i in self.operator.progress(range(len(sketch)), "trace"):
            w = self.new_test_vector(_long)
            sketch[i] = self.operator.matvec(w)
            self._own.append(dot(w, sketch[i]))
            self._lengths.append(dot(w, w))
        r = self.basis.extend(sketch, self.generator)
        self._r = torch.cat([torch.nn.functional.pad(self._r, (0, 0, 0, m - before)), r], dim=1)
        self.multiply_basis()
        known = [*self._g.T, *[torch.zeros(0, dtype=torch.float64)] * (m - before)]
        vectors = enumerate(self.redraw(_long, m))
        g = [torch.cat([known[i], self.basis.times(w, first=-1 if i < before else 0)]) for i, w in vectors]
        self._g = torch.stack(g, dim=1)
        s = self._left_out()
        c = self._g - s * (s * self._g).sum(dim=0)
        rest = torch.tensor(self._own, dtype=torch.float64) - (c * (2 * self._r - self.h @ c)).sum(dim=0)
        squared_length = torch.tensor(self._lengths, dtype=torch.float64) - (c * (2 * self._g - c)).sum(dim=0)
        return self.h.trace() - (s * (self.h @ s)).sum(dim=0) + (n - m + 1) * rest / squared_length

    def _left_out(self) -> Tensor:
        """s_i for each test vector, as columns (m, m): the unit vectors that Q loses without it."""
        u, sigma, vh = torch.linalg.svd(self._r)
        # A sketch of rank below m makes R singular. Singular values below rounding are raised to it: s_i then is one
        # of the arbitrary directions of Q, on which A is zero to rounding, unless y_i is no sum of the other y_j;
        # then s_i is what it should be. For A = 0 any s_i will do.
        rounding = torch.finfo(self.operator.dtype).eps * len(sigma) * float(sigma[0]) or 1.0
        s = u @ (vh / sigma.clamp(min=rounding)[:, None])
        return s / s.norm(dim=0)


def _long(size: int, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform on the sphere of radius sqrt(size), shape (size,)."""
    return unit(size, generator, dtype, device) * size**0.5


def _signs(size: int, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """+1 or -1 with equal odds, shape (size,)."""
    return torch.randint(0, 2, (size,), generator=generator).to(device, dtype) * 2 - 1


METHODS: dict[str, type[_Estimator]] = {"hutchinson": _Hutchinson, "hutch++": _HutchPlusPlus, "xtrace": _XTrace}
