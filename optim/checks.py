"""What settings and saved states must look like, and what is said where they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optim.langevin import CONVENTIONS

__all__ = ["check_settings", "check_state_dict"]


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError where a setting of a parameter group is out of range."""

    def require(holds: bool, name: str, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name}={settings[name]!r}: {remedy}")

    require(isinstance(settings["L"], int) and settings["L"] >= 0, "L", "give a whole number, 0 or more")
    require(settings["gamma"] >= 0, "gamma", "give a stiffness of 0 or more")
    require(settings["scoping"] >= 0, "scoping", "give a rate of 0 or more, such as 1e-3")
    require(settings["gamma_max"] >= settings["gamma"], "gamma_max", f"give at least gamma={settings['gamma']}")
    require(settings["langevin_lr"] > 0, "langevin_lr", "give a positive step, such as 0.1")
    require(0 <= settings["langevin_momentum"] < 1, "langevin_momentum", "give a momentum in [0, 1)")
    require(settings["noise"] >= 0, "noise", "give a standard deviation of 0 or more")
    require(0 <= settings["averaging"] <= 1, "averaging", "give a weight in [0, 1]")
    require(settings["convention"] in CONVENTIONS, "convention", f"give one of {CONVENTIONS}")


def check_state_dict(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Raise ValueError unless ``state_dict`` is of such an optimizer, with such parameters."""
    own, groups = optimizer.param_groups, state_dict.get("param_groups", [])
    if "generator" not in state_dict or any(group.keys() != own[0].keys() for group in groups):
        raise ValueError(
            f"state_dict is not one of {type(optimizer).__name__}: give what its own state_dict() returned"
        )
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
        raise ValueError(
            f"state_dict has groups of {[len(g['params']) for g in groups]} parameters, the optimizer of "
            f"{[len(g['params']) for g in own]}: make the groups as they were when it was saved"
        )
    indices = [index for group in groups for index in group["params"]]
    parameters: list[Tensor] = [p for group in own for p in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in state_dict["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                raise ValueError(
                    f"state_dict has {name} of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}: load the state of the same network"
                )
