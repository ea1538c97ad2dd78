"""A network's state, saved and loaded by its own ``state_dict`` and ``load_state_dict``, whatever it makes of them.

Networks override both, and register hooks: adapters save what is trained and leave out the rest, names are changed on
the way out and back, loading may put new parameters in the place of the old. Where a network has such ways of its own,
the outcome decides: after loading, its state is what was given, in the parameters that it had. Else it is put back as
it was, and the checkpoint refused. What its state leaves out stays its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints.fitting import is_extra_state
from landscape.checkpoints.names import Reading, few, readings
from landscape.checkpoints.values import equal

__all__ = ["brought_up_to_date", "load", "state_of"]

_WAYS = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict")
_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def state_of(model: nn.Module) -> Mapping[str, Any]:
    """What ``model.state_dict()`` gives, in the precision that the network has.

    Raises:
        ValueError: it gives something else than tensors by name.
    """
    state = model.state_dict()
    if not isinstance(state, Mapping):
        raise ValueError(_of_no_tensors(model, f"a {type(state).__name__}"))
    for name, value in state.items():
        if not (isinstance(value, Tensor) or is_extra_state(name)) and _holds_tensors(value):
            raise ValueError(_of_no_tensors(model, f"{name!r} as a {type(value).__name__} of tensors"))
    if not _has_own_ways(model):
        return state
    own = dict(_tensors(model))
    return _like(state, {name: _in_own_dtype(own.get(name), value) for name, value in state.items()})


def load(model: nn.Module, state: Mapping[str, Any], values: Mapping[str, Any], misfit: str) -> list[str]:
    """Give ``model`` the ``values``, and tell what stays as it was.

    Args:
        model: whose parameters stay the same objects, and keep their dtypes.
        state: of the model, by ``state_of``.
        values: by the same names, in its shapes.
        misfit: what an error begins with.

    Raises:
        ValueError: it does not take them; the model is then unchanged.
    """
    if not _has_own_ways(model):
        model.load_state_dict(_like(state, values))
        return []
    before = _Before(model)
    try:
        _take(model, state, values, misfit)
        before.keep_tensors(model, misfit)
        after = state_of(model)
        if others := [name for name, value in values.items() if _differs(after.get(name), value)]:
            raise _refusal(misfit, f"what is given is not what load_state_dict leaves in {few(others)}")
    except BaseException:
        before.restore()
        raise
    left_out = before.left_out(state)
    return [f"what the network's state_dict leaves out stays its own: {few(left_out)}"] if left_out else []


def brought_up_to_date(
    model: nn.Module, state: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The entries of a file as the modules' hooks and ``_load_from_state_dict`` rename and convert them.

    One after the other for each prefix that may stand before the names of the file or of the network, and only where
    modules have such a say. The model is unchanged.

    Args:
        model: whose modules.
        state: its own, by ``state_of``.
        tensors: the file's.
    """
    having = [(name, m) for name, m in model.named_modules() if _renames(m)]
    if not having:
        return
    before = _Before(model)
    for reading in (Reading(), *readings(state, tensors)):
        entries = dict(tensors)
        try:
            for name, module in having:
                module._load_from_state_dict(entries, reading.entry(f"{name}." if name else ""), {}, True, [], [], [])
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the network's own code may fail in any way at what is not meant for it
            continue
        finally:
            before.restore()
        yield entries


def _renames(module: nn.Module) -> bool:
    if not isinstance(module._parameters, dict):  # TorchScript
        return False
    own = type(module)._load_from_state_dict is not nn.Module._load_from_state_dict
    return own or "_load_from_state_dict" in vars(module) or bool(module._load_state_dict_pre_hooks)


class _Before:
    """A network's tensors and modules as they are, to put back."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        registered: list[Any] = [own for m in self._modules for own in (m._parameters, m._buffers, m._modules)]
        self._registered = [(own, dict(own)) for own in registered if isinstance(own, dict)]  # TorchScript has no dict
        self._values = {id(t): (t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())}
        self._names: dict[int, str] = {}  # by id, of those that states have
        for name, tensor in _tensors(model):
            self._names.setdefault(id(tensor), name)

    @torch.no_grad()
    def keep_tensors(self, model: nn.Module, misfit: str) -> None:
        """Move what was loaded into new tensors to those that were there.

        Raises:
            ValueError: it cannot be.
        """
        if list(model.modules()) != self._modules:
            raise _refusal(misfit, "its load_state_dict puts other modules in the place of its own")
        for own, entries in self._registered:
            for name, tensor in entries.items():
                new = own.get(name)
                if not isinstance(tensor, Tensor) or new is tensor:
                    continue
                if new is not None and new.shape == tensor.shape:
                    own[name] = tensor.copy_(new)
                elif isinstance(tensor, nn.Parameter):  # a buffer may be of another size each time, such as a cache
                    of_what = self._names[id(tensor)]
                    raise _refusal(misfit, f"its load_state_dict puts what has another shape in the place of {of_what}")

    @torch.no_grad()
    def restore(self) -> None:
        """All as it was."""
        for own, entries in self._registered:
            own.clear()
            own.update(entries)
        for tensor, value in self._values.values():
            tensor.copy_(value)

    def left_out(self, state: Mapping[str, Any]) -> list[str]:
        """What ``state`` holds neither by its name nor by its memory, and is as it was."""
        held = {value.data_ptr() for value in state.values() if _is_dense(value)}
        tensors = {name: self._values[key] for key, name in self._names.items() if name not in state}
        return [
            name
            for name, (tensor, value) in tensors.items()
            if _is_dense(tensor) and tensor.data_ptr() not in held and equal(tensor, value)
        ]


def _take(model: nn.Module, state: Mapping[str, Any], values: Mapping[str, Any], misfit: str) -> None:
    try:
        try:
            model.load_state_dict(_like(state, values))
        except RuntimeError:  # of torch, where keys are missing, after it has loaded the others
            model.load_state_dict(_like(state, values), strict=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:  # the network's own code may fail in any way
        raise _refusal(misfit, f"its load_state_dict does not take it ({type(cause).__name__}: {cause})") from cause


def _refusal(misfit: str, why: str) -> ValueError:
    return ValueError(
        f"{misfit}: {why}. Let load_state_dict take what state_dict gives, with all hooks of both, or give a network "
        "that overrides neither"
    )


def _of_no_tensors(model: nn.Module, what: str) -> str:
    return f"state_dict of {type(model).__name__} gives {what}: let it give tensors by name"


def _has_own_ways(model: nn.Module) -> bool:
    """Whether anything of it but torch has a say in how its state is saved and loaded."""
    return any(
        any(getattr(type(m), way).__module__.partition(".")[0] != "torch" or way in vars(m) for way in _WAYS)
        or any(vars(m).get(hooks) for hooks in _HOOKS)
        for m in model.modules()
    )


def _like(state: Mapping[str, Any], values: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """The values with the versions of the modules, by which they tell files of before."""
    given = OrderedDict(values)
    if hasattr(state, "_metadata"):
        given._metadata = state._metadata  # type: ignore[attr-defined]
    return given


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that torch would save, by its names; tied ones under each name."""
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, tensor


def _in_own_dtype(own: Tensor | None, value: Any) -> Any:
    """The network's own tensor where the value is that in another precision."""
    if own is None or not _is_dense(value) or value.dtype == own.dtype or value.shape != own.shape:
        return value
    return own.detach() if equal(own.detach().to(value.dtype), value) else value


def _differs(found: Any, value: Any) -> bool:
    if not _is_dense(value):
        return False
    return not (isinstance(found, Tensor) and equal(found, value.to(found.dtype)))


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.numel() > 0


def _holds_tensors(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(isinstance(item, Tensor) or _holds_tensors(item) for item in items)
