"""Numbers, errors and verdicts as they are written in text, and records as strict JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import xarray

from landscape.compare import Analysis, Difference, GroupVerdict, Verdict

__all__ = [
    "answer",
    "budgets",
    "by_pair",
    "group_answer",
    "group_verdict",
    "interval",
    "number",
    "p_value",
    "plain",
    "reason",
    "training_settings",
    "verdict",
    "with_error",
    "with_spread",
]

V = TypeVar("V", Verdict, GroupVerdict)

_NO_MEASURE = "None of the analyses measures flatness: add eigenpairs or spectral_density."


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
    (shown, spread), suffix = _rounded((value, error), error)
    return f"({shown} ± {spread}){suffix}" if suffix else f"{shown} ± {spread}"


def _rounded(values: Sequence[float], error: float) -> tuple[list[str], str]:
    """The values to two digits of ``error``, and the power of ten that they all are multiples of, or nothing."""
    exponent = math.floor(math.log10(max(*map(abs, values), error)))
    scale, suffix = (10.0**exponent, f"e{exponent}") if exponent < -3 or exponent > 4 else (1.0, "")
    decimals = max(0, 1 - math.floor(math.log10(error / scale)))
    return [f"{value / scale:.{decimals}f}" for value in values], suffix


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


def answer(found: Sequence[Verdict]) -> str:
    """What single checkpoints say, in a sentence for each pair."""
    return _NO_MEASURE if not found else " ".join(f"Of {_measures(own)}, {_counted(own)}." for own in by_pair(found))


def group_answer(found: Sequence[GroupVerdict]) -> str:
    """What groups of runs say, in two sentences for each pair: how many measures tell what, and the clearest."""
    return (
        _NO_MEASURE
        if not found
        else " ".join(
            f"Of {_measures(own)} over {_runs(own[0])}, {_counted(own)}. {_clearest(own)}" for own in by_pair(found)
        )
    )


def by_pair(found: Sequence[V]) -> list[list[V]]:
    """The verdicts of each two checkpoints or groups, in their order."""
    pairs = dict.fromkeys((v.first, v.other) for v in found)
    return [[v for v in found if (v.first, v.other) == pair] for pair in pairs]


def _measures(found: Sequence[Any]) -> str:
    return f"{len(found)} measure{'s' * (len(found) > 1)}"


def _counted(found: Sequence[Verdict] | Sequence[GroupVerdict]) -> str:
    first, other = found[0].first, found[0].other
    flattest, says = [v.flattest for v in found], [v.says for v in found]
    if not any(flattest) and "equal" not in says:
        return "none tells which is flatter"
    equal = says.count("equal")
    counts = [(flattest.count(name), f"{name} the flatter") for name in (other, first)] + [(equal, "them equal")]
    parts = [f"{count} call{'s' * (count == 1)} {what}" for count, what in counts if count]
    if undecided := flattest.count("") - equal:
        parts.append(f"{undecided} cannot tell")
    return ", ".join(parts)


def _runs(v: GroupVerdict) -> str:
    count = f"{len(v.values[0])} and {len(v.values[1])} runs of {v.first} and {v.other}"
    return f"{len(v.values[0])} pairs of runs of {v.first} and {v.other}" if v.paired else count


def _clearest(found: Sequence[GroupVerdict]) -> str:
    """The numbers of the measure that tells most clearly, or comes nearest to it."""
    # among adjusted values of 1 the least before the adjustment
    tested = [(v.p, v.difference.p, i, v, v.difference) for i, v in enumerate(found) if v.difference is not None]
    if not tested:
        if unreliable := sorted({name for v in found for name in v.unreliable}):
            return f"No measure is reliable for every run: {', '.join(unreliable)}."
        return "A group of one run has no spread, so that no difference of the groups can be told from one of seeds."
    *_, v, difference = min(tested)
    where, p = "Clearest" if v.flattest else "Nearest to telling", v.p
    equal = [(u.equivalence_p, i, u, d) for _, _, i, u, d in tested if u.says == "equal"]
    if equal and not v.flattest:
        p, _, v, difference = min(equal)
        where = f"Most clearly equal, within {number(v.margin)}"
    told = p_value(p)
    return (
        f"{where}: {v.measure}, {number(v.means[1])} for {v.other} and {number(v.means[0])} for {v.first}, a "
        f"difference of {number(difference.value)} with a 95 % interval from {interval(difference)} "
        f"(adjusted p {told if told.startswith('<') else f'= {told}'})."
    )


def group_verdict(v: GroupVerdict) -> str:
    """What it says."""
    if v.says == "flatter":
        return f"{v.flattest} is flatter"
    if v.says == "equal":
        return f"equal within {number(v.margin)}"
    if v.says == "one run":
        return "cannot tell from one run of a group"
    if v.says == "not reliable":
        return f"not reliable for {', '.join(v.unreliable)}"
    if v.runs is None:
        return "cannot tell; nor would a thousand seeds of each at this precision"
    return f"cannot tell; about {v.runs} seeds of each would"


def interval(difference: Difference) -> str:
    """The ends of the 95 % interval, in words that take negative numbers."""
    low, high = difference.interval()
    if high == low:
        return f"{number(low)} to {number(high)}"
    ends, suffix = _rounded((low, high), (high - low) / 2)
    return f"({ends[0]} to {ends[1]}){suffix}" if suffix else f"{ends[0]} to {ends[1]}"


def p_value(p: float) -> str:
    """Two significant digits, down to a thousandth."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def with_spread(v: GroupVerdict, side: int) -> str:
    """The mean of a group, and the standard deviation over its runs without the estimator's error, if there are any."""
    return number(v.means[side]) if v.difference is None else with_error(v.means[side], v.difference.spreads[side])


def budgets(metadata: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> str:
    """A sentence if the groups spent different numbers of gradients, as far as their files say; otherwise empty."""
    spent: dict[str, set[int]] = {
        group: {metadata[name]["gradients"] for name in names if "gradients" in metadata[name]}
        for group, names in groups.items()
    }
    if len({frozenset(found) for found in spent.values() if found}) < 2:
        return ""
    told = ", ".join(f"{group} {' or '.join(map(str, sorted(found)))}" for group, found in spent.items() if found)
    return f"The budgets differ ({told} gradients), so that a difference may be that of the budgets."


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
