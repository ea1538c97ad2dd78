"""Numbers, errors and verdicts as they are written in text, and records as strict JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
import xarray

from landscape.compare import Analysis, Verdict

__all__ = ["number", "plain", "reason", "training_settings", "verdict", "with_error"]


def number(value: Any) -> str:
    """Four significant digits; a dash for what is not known."""
    if isinstance(value, float | np.floating):
        return "–" if math.isnan(value) else f"{value:.4g}"  # noqa: RUF001 - a dash is meant
    return str(value)


def with_error(value: float, error: float) -> str:
    """The value to the digits that its standard error leaves; alone where it is exact to those shown."""
    if not math.isfinite(value) or error < 1e-4 * abs(value) or error == 0:
        return number(value)
    if not math.isfinite(error):
        return f"{number(value)} ± ?"
    exponent = math.floor(math.log10(max(abs(value), error)))
    scale, suffix = (10.0**exponent, f"e{exponent}") if exponent < -3 or exponent > 4 else (1.0, "")
    decimals = max(0, 1 - math.floor(math.log10(error / scale)))
    text = f"{value / scale:.{decimals}f} ± {error / scale:.{decimals}f}"
    return f"({text}){suffix}" if suffix else text


def verdict(v: Verdict) -> str:
    """What it says."""
    return {
        "flatter": f"{v.flattest} is flatter",
        "no difference": "no difference",
        "error not known": "the error is not known",
        "not reliable": "not reliable",
    }[v.says]


def reason(v: Verdict) -> str:
    """The numbers that it rests on."""
    text = f"{v.first} {number(v.values[0])}, {v.other} {number(v.values[1])}"
    if math.isfinite(v.difference) and math.isfinite(v.error):
        text += f"; {_apart(v.difference, v.error)}"
    if v.contradicted:
        text += f"; outside the bracket of annealed SMC of {' and '.join(v.contradicted)}: go by that"
    return text


def _apart(difference: float, error: float) -> str:
    if error > 0 and abs(difference) < 100 * error:
        return f"{abs(difference) / error:.2g} standard errors apart"
    return "the error is less than a hundredth of the difference" if difference else "exact"


def training_settings(metadata: Mapping[str, Any]) -> str:
    """The optimizer's settings in a line; those that are off are left out."""
    settings = metadata.get("settings", {})
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value) or "–"  # noqa: RUF001


def plain(value: Any) -> Any:
    """As JSON has it: no points of the parameter space (the store keeps them), NaN as null, infinity as a string."""
    if isinstance(value, Analysis):
        return value.name
    if isinstance(value, xarray.Dataset):
        return plain(value.to_dict())
    if is_dataclass(value):
        named = {f.name: getattr(value, f.name) for f in fields(value)}
        return {name: plain(item) for name, item in named.items() if not isinstance(item, torch.Tensor)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
