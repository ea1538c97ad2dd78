"""Entropy-SGD (Chaudhari et al. 2017, arXiv:1611.01838, Algorithm 1).

Entropy-SGD descends the negative local entropy -F, where

    F(x, gamma) = log integral exp(-f(x') - gamma/2 ||x - x'||^2) dx',
    -grad F     = gamma (x - <x'>).

The mean <x'> of the Gibbs measure around x is estimated by L steps of stochastic gradient
Langevin dynamics, each on a fresh mini-batch; the outer step is then one step of
``torch.optim.SGD`` on the direction x - mu:

    x', mu <- x
    L times:
        dx' <- grad f(x') - gamma (x - x')
        x'  <- x' - eta' dx' + sqrt(eta') eps N(0, I)
        mu  <- (1 - alpha) mu + alpha x'
    x <- x - eta (x - mu)

The theory has eta * gamma in the last line. Practice, the paper's included, drops the gamma, since
gamma starts at 1e-4 and would stop the outer loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["EntropySGD"]


class EntropySGD(torch.optim.Optimizer):
    """Entropy-SGD: SGD on the local entropy, whose gradient an inner Langevin loop estimates.

    ``step(closure)`` calls the closure L times. Each call must zero the gradients, evaluate the loss
    on a *fresh mini-batch*, call ``backward()`` and return the loss. One step therefore costs L
    gradients, and E epochs of SGD are matched by E / L epochs of steps. With ``L=0`` the closure is
    called once and the step is that of ``torch.optim.SGD``, bit for bit.

    Weight decay belongs to f: it enters every inner gradient, and the outer step adds none.

    Args:
        params: parameters or parameter groups; every setting but ``L`` may differ between groups.
        lr: eta, the outer step. 1 moves x all the way to mu (with ``momentum=0``).
        momentum: momentum of the outer SGD.
        nesterov: whether that momentum is Nesterov's.
        weight_decay: lambda, adds lambda/2 ||x||^2 to f.
        L: inner Langevin steps, that is gradients, per outer step (the paper: 5 to 20).
        gamma: gamma_0, stiffness of the pull of x' towards x, in units of f / weight^2.
        scoping: gamma_1; gamma is gamma_0 (1 + gamma_1)^t after t outer steps.
        langevin_lr: eta', the inner step (the paper: 0.1).
        noise: eps, standard deviation of the Langevin noise before its factor sqrt(eta').
        averaging: alpha in [0, 1], the weight of the *new* iterate in mu (the paper: 0.75).
        generator: CPU generator of the noise. Default: a new one, seeded by the operating system.

    Raises:
        ValueError: a setting out of its range; ``step`` without a closure.

    Example:
        On f(x) = x^2 / 2 with gamma = 0 and no noise, two inner steps of length 1/2 take x' from 1 to
        1/2 to 1/4, and averaging = 1 makes mu the last of them:

        >>> x = torch.ones(1, requires_grad=True)
        >>> optimizer = EntropySGD([x], lr=1.0, L=2, gamma=0.0, langevin_lr=0.5, noise=0.0, averaging=1.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (x**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> loss.item(), x.item()
        (0.5, 0.25)
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        L: int = 20,  # noqa: N803 - the paper's symbol
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        langevin_lr: float = 0.1,
        noise: float = 1e-4,
        averaging: float = 0.75,
        generator: torch.Generator | None = None,
    ) -> None:
        self._outer = torch.optim.SGD(
            params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
        inner = {
            "L": L,
            "gamma": gamma,
            "scoping": scoping,
            "langevin_lr": langevin_lr,
            "noise": noise,
            "averaging": averaging,
        }
        super().__init__(self._outer.param_groups, {**self._outer.defaults, **inner})
        self._share_with_outer()
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        self.generator = generator

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its ``L`` must be that of the others."""
        settings = {**self.defaults, **param_group}
        _check_settings(settings)
        if self.param_groups and settings["L"] != self.param_groups[0]["L"]:
            raise ValueError(
                f"L={settings['L']} differs from the other groups' L={self.param_groups[0]['L']}: "
                "one closure call serves all groups, so give all of them the same L"
            )
        super().add_param_group(param_group)

    @property
    def gradients_per_step(self) -> int:
        """Closure calls, that is mini-batch gradients, that one ``step`` spends: max(L, 1)."""
        return max(self.param_groups[0]["L"], 1)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Estimate <x'> by L Langevin steps, then take one SGD step on x - mu.

        Args:
            closure: zeroes the gradients, evaluates the loss on a fresh mini-batch, calls
                ``backward()`` and returns the loss.

        Returns:
            The first loss of the inner loop, which is f(x) on its mini-batch.
        """
        if closure is None:
            raise ValueError(
                "closure=None: EntropySGD evaluates the loss L times a step, so call "
                "step(closure) with a closure that draws a fresh mini-batch, calls backward() and "
                "returns the loss"
            )
        closure = torch.enable_grad()(closure)
        if self.param_groups[0]["L"] == 0:
            loss = closure()
            self._outer.step()
        else:
            loss = self._langevin(closure)
            self._outer_step_without_decay()
        for group in self.param_groups:
            group["gamma"] *= 1 + group["scoping"]
        return loss

    def _langevin(self, closure: Callable[[], Any]) -> Any:
        """Run the inner loop; leave the parameters at x and x - mu in their ``.grad``."""
        chains = [(group, p, p.clone(), p.clone()) for group in self.param_groups for p in group["params"]]
        moved = set()  # parameters without a gradient are not in f: they stay, as in torch.optim.SGD
        first_loss = None
        try:
            for step in range(self.param_groups[0]["L"]):
                loss = closure()
                first_loss = loss if step == 0 else first_loss
                for group, x_prime, x, mu in chains:
                    if x_prime.grad is None:
                        continue
                    moved.add(x_prime)
                    drift = x_prime.grad.add(x_prime, alpha=group["weight_decay"])
                    drift.add_(x_prime - x, alpha=group["gamma"])
                    x_prime.add_(drift, alpha=-group["langevin_lr"])
                    if group["noise"] > 0:
                        scale = math.sqrt(group["langevin_lr"]) * group["noise"]
                        x_prime.add_(self._normal_like(x_prime), alpha=scale)
                    mu.lerp_(x_prime, group["averaging"])
        finally:  # an error in the closure must not leave the weights at an inner iterate
            for _, p, x, _ in chains:
                p.copy_(x)
        for _, p, x, mu in chains:
            p.grad = x - mu if p in moved else None
        return first_loss

    def _outer_step_without_decay(self) -> None:
        """One step of the outer SGD on x - mu, which holds the pull of the weight decay already."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0
        try:
            self._outer.step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _normal_like(self, tensor: Tensor) -> Tensor:
        """N(0, I), drawn on the CPU so that the noise does not depend on the device."""
        return torch.randn(tensor.shape, generator=self.generator, dtype=tensor.dtype).to(tensor.device)

    def _share_with_outer(self) -> None:
        """One set of parameter groups and one state: those of the outer SGD are ours."""
        self._outer.param_groups = self.param_groups
        self._outer.state = self.state

    def state_dict(self) -> dict[str, Any]:
        """The state of ``torch.optim.SGD`` and its groups, and the state of the noise generator."""
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()``, the noise included."""
        super().load_state_dict(state_dict)
        self.generator.set_state(state_dict["generator"])
        self._share_with_outer()


def _check_settings(settings: dict[str, Any]) -> None:
    def require(holds: bool, name: str, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name}={settings[name]!r}: {remedy}")

    require(isinstance(settings["L"], int) and settings["L"] >= 0, "L", "give a whole number, 0 or more")
    require(settings["gamma"] >= 0, "gamma", "give a stiffness of 0 or more")
    require(settings["scoping"] >= 0, "scoping", "give a rate of 0 or more, such as 1e-3")
    require(settings["langevin_lr"] > 0, "langevin_lr", "give a positive step, such as 0.1")
    require(settings["noise"] >= 0, "noise", "give a standard deviation of 0 or more")
    require(0 <= settings["averaging"] <= 1, "averaging", "give the weight of the new iterate, in [0, 1]")
