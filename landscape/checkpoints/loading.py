"""Save and load a network's state by its own ``state_dict`` and ``load_state_dict``, which it may override.

Networks override both and register hooks: adapters save the trained tensors only, names are changed on saving and
loading, and loading may replace parameters. For such networks the result is checked: after loading, the state has to
be what was given, in the same parameter objects. Otherwise the network is restored and the checkpoint refused. Tensors
that the state does not include are not changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints.fitting import is_extra_state
from landscape.checkpoints.names import PrefixMap, prefix_maps, truncated
from landscape.checkpoints.values import equal

__all__ = ["load", "migrated_entries", "state_of"]

_METHODS = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict")
_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def state_of(model: nn.Module) -> Mapping[str, Any]:
    """``model.state_dict()``, in the dtypes of the network.

    Raises:
        ValueError: it is not a mapping of names to tensors.
    """
    state = model.state_dict()
    if not isinstance(state, Mapping):
        raise ValueError(_no_tensors_message(model, f"a {type(state).__name__}"))
    for name, value in state.items():
        if not (isinstance(value, Tensor) or is_extra_state(name)) and _holds_tensors(value):
            raise ValueError(_no_tensors_message(model, f"{name!r} as a {type(value).__name__} of tensors"))
    if not _overrides_state_dict(model):
        return state
    own = dict(_tensors(model))
    return _with_metadata(state, {name: _in_own_dtype(own.get(name), value) for name, value in state.items()})


def load(model: nn.Module, state: Mapping[str, Any], values: Mapping[str, Any], misfit: str) -> list[str]:
    """Load ``values`` into ``model``, and return which tensors were not changed, in sentences.

    Args:
        model: the network; its parameters remain the same objects and keep their dtypes.
        state: of the model, by ``state_of``.
        values: by the same names, in its shapes.
        misfit: the beginning of error messages.

    Raises:
        ValueError: it does not accept them; the model is then unchanged.
    """
    if not _overrides_state_dict(model):
        model.load_state_dict(_with_metadata(state, values))
        return []
    before = _Snapshot(model)
    try:
        _load_state(model, state, values, misfit)
        before.keep_tensors(model, misfit)
        after = state_of(model)
        if others := [name for name, value in values.items() if _differs(after.get(name), value)]:
            raise _refusal(misfit, f"what is given is not what load_state_dict leaves in {truncated(others)}")
    except BaseException:
        before.restore()
        raise
    left_out = before.left_out(state)
    return [f"what the network's state_dict leaves out stays its own: {truncated(left_out)}"] if left_out else []


def migrated_entries(
    model: nn.Module, state: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The entries of a file, as renamed and converted by the modules' load hooks and ``_load_from_state_dict``.

    Yields one version for each prefix map; nothing if no module has such hooks. The model is not changed.

    Args:
        model: the network.
        state: its state, by ``state_of``.
        tensors: the entries of the file.
    """
    hooked = [(name, m) for name, m in model.named_modules() if _has_load_hooks(m)]
    if not hooked:
        return
    before = _Snapshot(model)
    for prefix_map in (PrefixMap(), *prefix_maps(state, tensors)):
        entries = dict(tensors)
        try:
            for name, module in hooked:
                module._load_from_state_dict(
                    entries, prefix_map.entry(f"{name}." if name else ""), {}, True, [], [], []
                )
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the network's hooks may raise anything for other entries than expected
            continue
        finally:
            before.restore()
        yield entries


def _has_load_hooks(module: nn.Module) -> bool:
    if not isinstance(module._parameters, dict):  # TorchScript
        return False
    own = type(module)._load_from_state_dict is not nn.Module._load_from_state_dict
    return own or "_load_from_state_dict" in vars(module) or bool(module._load_state_dict_pre_hooks)


class _Snapshot:
    """A copy of a network's tensors and modules, to restore them."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        registered: list[Any] = [own for m in self._modules for own in (m._parameters, m._buffers, m._modules)]
        self._registered = [(own, dict(own)) for own in registered if isinstance(own, dict)]  # TorchScript has no dict
        self._values = {id(t): (t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())}
        self._names: dict[int, str] = {}  # by id, of the persistent tensors
        for name, tensor in _tensors(model):
            self._names.setdefault(id(tensor), name)

    @torch.no_grad()
    def keep_tensors(self, model: nn.Module, misfit: str) -> None:
        """Copy what was loaded into new tensors back into the original ones.

        Raises:
            ValueError: the modules or shapes have changed.
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
                elif isinstance(tensor, nn.Parameter):  # a buffer may change its size, such as a cache
                    of_what = self._names[id(tensor)]
                    raise _refusal(misfit, f"its load_state_dict puts what has another shape in the place of {of_what}")

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the original modules and values."""
        for own, entries in self._registered:
            own.clear()
            own.update(entries)
        for tensor, value in self._values.values():
            tensor.copy_(value)

    def left_out(self, state: Mapping[str, Any]) -> list[str]:
        """The names of tensors that ``state`` includes neither by name nor by memory, and that did not change."""
        stored = {value.data_ptr() for value in state.values() if _is_dense(value)}
        tensors = {name: self._values[key] for key, name in self._names.items() if name not in state}
        return [
            name
            for name, (tensor, value) in tensors.items()
            if _is_dense(tensor) and tensor.data_ptr() not in stored and equal(tensor, value)
        ]


def _load_state(model: nn.Module, state: Mapping[str, Any], values: Mapping[str, Any], misfit: str) -> None:
    try:
        try:
            model.load_state_dict(_with_metadata(state, values))
        except RuntimeError:  # raised by torch for missing keys, after the others are loaded
            model.load_state_dict(_with_metadata(state, values), strict=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:  # a user's load_state_dict may raise anything
        raise _refusal(misfit, f"its load_state_dict does not take it ({type(cause).__name__}: {cause})") from cause


def _refusal(misfit: str, why: str) -> ValueError:
    return ValueError(
        f"{misfit}: {why}. Let load_state_dict take what state_dict gives, with all hooks of both, or give a network "
        "that overrides neither"
    )


def _no_tensors_message(model: nn.Module, what: str) -> str:
    return f"state_dict of {type(model).__name__} gives {what}: let it give tensors by name"


def _overrides_state_dict(model: nn.Module) -> bool:
    """Whether a module overrides the methods that save and load its state, or has hooks on them."""
    return any(
        any(
            getattr(type(m), method).__module__.partition(".")[0] != "torch" or method in vars(m) for method in _METHODS
        )
        or any(vars(m).get(hooks) for hooks in _HOOKS)
        for m in model.modules()
    )


def _with_metadata(state: Mapping[str, Any], values: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """The values with the metadata of ``state``, which holds the versions of the modules."""
    given = OrderedDict(values)
    if hasattr(state, "_metadata"):
        given._metadata = state._metadata  # type: ignore[attr-defined]
    return given


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that torch saves by default, by name; tied ones under each name."""
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, tensor


def _in_own_dtype(own: Tensor | None, value: Any) -> Any:
    """The network's own tensor if the value is that tensor in another dtype, otherwise the value."""
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
