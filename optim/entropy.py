"""Entropy-SGD and its kin: any ``torch.optim`` optimizer, descending the local entropy instead of the loss.

Entropy-SGD (Chaudhari et al. 2017, arXiv:1611.01838) minimises -F, where

    F(x, gamma) = log integral exp(-f(x') - gamma/2 ||x - x'||^2) dx',
    -grad F     = gamma (x - <x'>),

with <x'> the mean of the Gibbs measure around x. L Langevin steps estimate it (``optim.langevin``), and the outer
optimizer takes one step on the direction x - mu as if that were a gradient. The theory has gamma (x - mu); practice,
the paper's included, drops the factor, since gamma starts at 1e-4 and would stop the outer loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from optim.checks import check_settings, check_state_dict
from optim.diagnostics import Watch
from optim.langevin import Chain

__all__ = ["EntropyOptimizer"]


class EntropyOptimizer(torch.optim.Optimizer):
    """Any ``torch.optim`` optimizer as the outer loop of Entropy-SGD.

    ``step(closure)`` calls the closure L times. Each call must zero the gradients, evaluate the loss on a *fresh
    mini-batch*, call ``backward()`` and return the loss. One step costs exactly L gradients, so E epochs of the plain
    optimizer are matched by E / L epochs of steps. With ``L=0`` the closure is called once and the step is the outer
    optimizer's own, bit for bit.

    A step is all or nothing: where the closure raises, or its loss is not finite, the weights are back at x before
    the error leaves ``step``, and the error says which inner step it was.

    Weight decay that adds to the gradient belongs to f, so it enters every inner gradient and the outer step adds
    none. Decoupled weight decay (AdamW) stays with the outer step.

    Groups, state and learning rate are shared with ``outer``: schedulers, hooks and ``state_dict`` go through this
    object alone. Under ``torch.distributed`` the default generator has the same seed on every rank, so that all draw
    the same noise and stay bit-identical; give a generator of your own the same seed everywhere.

    Args:
        outer: the optimizer of the outer loop, with its parameters. Every setting below but ``L``, ``gradient_hook``,
            ``diagnostics`` and ``generator`` may be given per parameter group.
        L: inner Langevin steps, that is gradients, per outer step (the paper: 5 to 20).
        gamma: gamma_0, stiffness of the pull of x' towards x, in units of f / weight^2.
        scoping: gamma_1; ``param_groups[i]["gamma"]`` grows by the factor 1 + gamma_1 each outer step.
        gamma_max: where that growth ends.
        gamma_scaled: whether the outer direction is the theory's gamma (x - mu).
        langevin_lr: eta', the inner step (the paper: 0.1).
        langevin_momentum: Nesterov momentum of the inner loop.
        noise: eps (the paper: 1e-4 to 1e-3).
        averaging: alpha in [0, 1] (0.75).
        convention: ``"paper"`` or ``"reference"``, the authors' code: see the table in ``optim.langevin``. The paper's
            is the default, since it is the one that is published, and its alpha = 0.75 forgets fast enough for L = 5.
        gradient_hook: called after each closure call, before the gradients are used: the place to clip them.
        diagnostics: whether to fill ``diagnostics`` each step, at the cost of a few norms.
        generator: CPU generator of the noise. Default: a new one, seeded by the operating system.

    Attributes:
        diagnostics: of the last step, if asked for: ``gamma``, ``distance`` ||x - mu||, ``mean_distance`` of ||x - x'||
            over the inner steps, ``cosine`` of x - mu to the last inner gradient, ``first_loss``, ``last_loss``,
            ``gradients`` spent in all.

    Raises:
        ValueError: a setting out of range; ``step`` without a closure; sparse gradients; groups of different L.
    """

    def __init__(
        self,
        outer: torch.optim.Optimizer,
        *,
        L: int = 20,  # noqa: N803 - the paper's symbol
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        gamma_max: float = math.inf,
        gamma_scaled: bool = False,
        langevin_lr: float = 0.1,
        langevin_momentum: float = 0.0,
        noise: float = 1e-4,
        averaging: float = 0.75,
        convention: str = "paper",
        gradient_hook: Callable[[], None] | None = None,
        diagnostics: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.outer = outer
        inner = {
            "L": L,
            "gamma": gamma,
            "scoping": scoping,
            "gamma_max": gamma_max,
            "gamma_scaled": gamma_scaled,
            "langevin_lr": langevin_lr,
            "langevin_momentum": langevin_momentum,
            "noise": noise,
            "averaging": averaging,
            "convention": convention,
        }
        super().__init__(outer.param_groups, {**outer.defaults, **inner})
        self._share_with_outer()
        self.gradient_hook = gradient_hook
        self.generator = _new_generator() if generator is None else generator
        self.gradients = 0
        self.diagnostics: dict[str, float] | None = {} if diagnostics else None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its ``L`` must be that of the others."""
        settings = {**self.defaults, **param_group}
        check_settings(settings)
        if self.param_groups and settings["L"] != self.param_groups[0]["L"]:
            raise ValueError(
                f"L={settings['L']} differs from the other groups' L={self.param_groups[0]['L']}: one closure call "
                "serves all groups, so give all of them the same L"
            )
        super().add_param_group(param_group)

    @property
    def gradients_per_step(self) -> int:
        """Closure calls, that is mini-batch gradients, that one ``step`` spends: max(L, 1)."""
        return max(self.param_groups[0]["L"], 1)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Estimate <x'> by L Langevin steps, then take one step of the outer optimizer on x - mu.

        Args:
            closure: zeroes the gradients, evaluates the loss on a fresh mini-batch, calls ``backward()`` and returns
                the loss.

        Returns:
            The first loss of the inner loop, which is f(x) on its mini-batch.
        """
        if closure is None:
            raise ValueError(
                f"closure=None: {type(self).__name__} evaluates the loss L times a step, so call step(closure) with a "
                "closure that draws a fresh mini-batch, calls backward() and returns the loss"
            )
        closure = torch.enable_grad()(closure)
        if self.param_groups[0]["L"] == 0:
            loss = self._gradient(closure)
            self.outer.step()
        else:
            loss = self._langevin(closure)
            self._outer_step()
            self._advance_gamma("paper")
        self.gradients += self.gradients_per_step
        if self.diagnostics is not None:
            self.diagnostics["gradients"] = self.gradients
        return loss

    def _gradient(self, closure: Callable[[], Any]) -> Any:
        """One closure call, checked."""
        loss = closure()
        value = loss.item() if isinstance(loss, torch.Tensor) else loss
        if value is None or not math.isfinite(value):
            raise FloatingPointError(
                f"the closure returned a loss of {value}: lower langevin_lr or lr, or return the loss if it is None"
            )
        if self.gradient_hook is not None:
            self.gradient_hook()
        return loss

    def _langevin(self, closure: Callable[[], Any]) -> Any:
        """Run the inner loop; leave the parameters at x, x - mu in their ``.grad``, and return the first loss."""
        L = self.param_groups[0]["L"]  # noqa: N806
        noise, gammas = self.generator.get_state(), [group["gamma"] for group in self.param_groups]
        self._advance_gamma("reference")
        chains = [Chain.begin(group, _decay_of_f(self.outer, group)) for group in self.param_groups]
        watch = None if self.diagnostics is None else Watch(chains)
        first_loss, inner_step = None, 0
        try:
            for inner_step in range(1, L + 1):
                loss = self._gradient(closure)
                first_loss = loss if inner_step == 1 else first_loss
                if watch:
                    watch.before_move(loss, last=inner_step == L)
                for chain in chains:
                    chain.step(self.generator)
                if watch:
                    watch.after_move()
        except BaseException as error:  # a Ctrl-C too
            for chain in chains:
                chain.restore()
            self.generator.set_state(noise)
            for group, gamma in zip(self.param_groups, gammas, strict=True):
                group["gamma"] = gamma
            error.add_note(
                f"{type(self).__name__}: this was in inner step {inner_step} of {L}; the weights are back at x"
            )
            raise
        for chain in chains:
            chain.finish()
        if watch:
            self.diagnostics = watch.summary()
        return first_loss

    def _outer_step(self) -> None:
        """One step of the outer optimizer on x - mu, as the convention and the groups' settings have it."""
        decays = [_decay_of_f(self.outer, group) for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            # the outer optimizer negates where it maximises, and x - mu leads uphill of -f there already
            sign = -1.0 if group.get("maximize", False) else 1.0
            scale = sign * (group["gamma"] if group["gamma_scaled"] else 1.0)
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if scale != 1.0 and gradients:
                torch._foreach_mul_(gradients, scale)
            if decay:  # f's gradients held it already
                group["weight_decay"] = 0.0
        try:
            self.outer.step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                if decay:
                    group["weight_decay"] = decay

    def _advance_gamma(self, convention: str) -> None:
        for group in self.param_groups:
            if group["convention"] == convention:
                group["gamma"] = min(group["gamma"] * (1 + group["scoping"]), group["gamma_max"])

    def _share_with_outer(self) -> None:
        """One set of parameter groups and one state."""
        self.outer.param_groups = self.param_groups
        self.outer.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy.deepcopy``: torch's keeps the groups and their state alone.

        Hooks are left out, as torch leaves them, and so is the ``step`` that a learning rate scheduler puts on the
        object, which would step the original. Older versions of torch cannot copy a generator, but its state.
        """
        own = {name: getattr(self, name) for name in ("outer", "gradient_hook", "gradients", "diagnostics")}
        return {**super().__getstate__(), **own, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Groups and state alone when ``load_state_dict`` calls it, everything in a copy."""
        if isinstance(state.get("generator"), torch.Tensor):
            generator = torch.Generator()
            generator.set_state(state["generator"])
            state = {**state, "generator": generator}
        super().__setstate__(state)
        self._share_with_outer()

    def state_dict(self) -> dict[str, Any]:
        """The outer optimizer's state and groups, the state of the noise generator and the gradients spent."""
        return {
            **super().state_dict(),
            "generator": self.generator.get_state(),
            "gradients": self.gradients,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()``, bit for bit, the noise included.

        Raises:
            ValueError: it is of another optimizer, or of parameters of other shapes; nothing is changed then.
        """
        check_state_dict(self, state_dict)
        super().load_state_dict(state_dict)
        self.generator.set_state(state_dict["generator"].cpu())
        self.gradients = state_dict["gradients"]
        self._share_with_outer()


def _decay_of_f(outer: torch.optim.Optimizer, group: dict[str, Any]) -> float:
    """The weight decay that is part of f: what the outer optimizer would add to the gradient."""
    if isinstance(outer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False):
        return 0.0
    return group.get("weight_decay", 0.0)


def _new_generator() -> torch.Generator:
    """Seeded by the operating system, with one seed for all ranks where there are several."""
    generator = torch.Generator()
    seed = [generator.seed()]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(seed, src=0)
    return generator.manual_seed(seed[0])
