"""A network's code with tensors of ours.

An objective owns its weights and buffers and borrows the code: while f is evaluated, every module of the user's works
on a ``__dict__`` of ours, in which our tensors stand where theirs do. Then it has its own back, untouched, whatever
happened. A deep copy cannot do this: closures, bound methods and compiled forwards would go on reading the original's
weights, and networks that keep activations cannot be copied.

Our dictionaries are as the user's were when the objective was made, with containers copied, and are made anew for each
evaluation: what forward leaves behind as an attribute, in a list or in a buffer, is forgotten, so that f is a function.
State that forward keeps in other Python objects is not ours to put back.

Not thread-safe: while one thread evaluates, the network is lent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from landscape.checkpoints import Checkpoint
from landscape.objective.acceptance import HALF, check_initialised, check_memory, checked_dtype
from landscape.objective.containers import CONTAINERS, found, own_copy, parameter_like, renewed, same_bits
from landscape.objective.modes import EMBEDDINGS, mode_of, settings_of
from landscape.objective.scripted import Scripted
from landscape.parameters import ParameterSpace

__all__ = ["Network"]

_HOOKS = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}


class Network:
    """The modules of a network and of its loss, and the tensors of ours that stand in them while they are lent.

    Args:
        model: the network, whose trainable parameters make up theta.
        others: further modules that are evaluated with it, such as a criterion. Their parameters are fixed.
        dtype: of theta and of all other floating tensors. Default: theirs, or float32 where they are half precision.
        training: whether modules are in training mode; normalisation and dropout are not, in either.

    Attributes:
        model: the user's network.
        space: the names and shapes of theta.
        flat: theta, of shape (n,).
        weights: its tensors, views of ``flat`` that require gradients.
        modules: all modules, each once.
        dtype: of theta.
        converted: whether other floating tensors were brought to it.

    Raises:
        TypeError: the network is no ``nn.Module``.
        ValueError: it has no trainable parameters, or some that are complex, not initialised, or of several dtypes or
            devices.
    """

    def __init__(
        self,
        model: nn.Module,
        others: Iterable[nn.Module] = (),
        *,
        dtype: torch.dtype | None = None,
        training: bool = False,
    ) -> None:
        check_initialised(model)
        self.model = model
        self.modules = list(dict.fromkeys(m for root in (model, *others) for m in root.modules()))
        self.space = ParameterSpace.of(model)
        named = dict(model.named_parameters())
        theirs = [named[name] for name in self.space.names]
        check_memory(model, theirs)
        self.dtype = checked_dtype(theirs, dtype)
        self.converted = dtype is not None or theirs[0].dtype in HALF
        self._kinds = [type(m) for m in self.modules]
        self._scripted = Scripted(self.modules)
        states = [dict(vars(m)) for m in self.modules]
        self._take(states, theirs, self.dtype if self.converted else None)
        self._set(training)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _take(self, states: list[dict[str, Any]], theta: Sequence[Tensor], dtype: torch.dtype | None) -> None:
        """Own copies of all tensors in ``states``, those of ``theta`` as views of one vector."""
        self.flat = torch.cat([p.detach().reshape(-1) for p in theta]).to(dtype or theta[0].dtype, copy=True)
        views = self.space.views(self.flat).values()
        self.weights = [parameter_like(view, given) for view, given in zip(views, theta, strict=True)]
        ours: dict[int, Any] = {id(p): own for p, own in zip(theta, self.weights, strict=True)}
        for tensor in found([*states, *self._scripted.tensors], Tensor):
            if id(tensor) not in ours:
                ours[id(tensor)] = own_copy(tensor, dtype)
        self._states = [{key: renewed(value, ours) for key, value in state.items()} for state in states]
        self._scripted = self._scripted.of(ours)
        self._moving: set[int] = set()
        self._index()

    def _index(self) -> None:
        """What an evaluation has to copy and to watch."""
        theta = {id(w) for w in self.weights}
        self._others = [t for t in self._tensors() if id(t) not in theta]
        self._generators = list(found(self._states, torch.Generator))
        self._mutable = [
            [
                (key, any(type(item) in CONTAINERS for item in (value.values() if isinstance(value, dict) else value)))
                for key, value in state.items()
                if type(value) in CONTAINERS and key not in _HOOKS and type(value) is not tuple
            ]
            for state in self._states
        ]

    def _set(self, training: bool) -> None:
        self._scripted.set_training(self.modules, training)
        for module, state in zip(self.modules, self._states, strict=True):
            if not isinstance(module, torch.jit.ScriptModule):
                state.update(settings_of(module), training=mode_of(module, training))

    # --- lending --------------------------------------------------------------------------------------------------

    @contextmanager
    def lent(
        self, weights: Sequence[Tensor] | None = None, *, adopt: Iterable[nn.Module] = (), probe: bool = False
    ) -> Iterator[nn.Module]:
        """Within it the user's network works on our tensors.

        Args:
            weights: to stand in for ``self.weights``, tensor by tensor. Default: those themselves.
            adopt: the modules whose buffers, as they are at the end, are ours from then on.
            probe: to find out which tensors forward changes in place: all but theta are copied.

        Raises:
            ValueError: the user has changed what kind of module one is since.
            ValueError: a buffer was changed in place that no ``probe`` found changing.
        """
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():  # its tensors could not be watched, nor kept for a graph
                graph = torch.is_grad_enabled()
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.set_grad_enabled(graph))
            with self._exchanged(weights, adopt, probe):
                yield self.model

    @contextmanager
    def _exchanged(self, weights: Sequence[Tensor] | None, adopt: Iterable[nn.Module], probe: bool) -> Iterator[None]:
        swaps: dict[int, Any] = {id(g): g.clone_state() for g in self._generators}
        if weights is not None:
            swaps.update((id(own), given) for own, given in zip(self.weights, weights, strict=True))
            for own, given in zip(self.weights, weights, strict=True):
                vars(given).update(vars(own))  # what forward may ask of them
        copied = [t for t in self._others if probe or id(t) in self._moving] if probe or self._moving else []
        for tensor in copied:
            swaps[id(tensor)] = own_copy(tensor, None)
        self._check_kinds()
        versions = [t._version for t in self._others]
        theirs = [vars(m) for m in self.modules]
        cached = parametrize._cache, parametrize._cache_enabled
        scripted = self._scripted.state()
        try:
            try:
                for module, state in zip(self.modules, self._fresh(swaps), strict=True):
                    object.__setattr__(module, "__dict__", state)
                self._scripted.lend(swaps)
                parametrize._cache, parametrize._cache_enabled = {}, 0  # of the user's own weights
                yield
                self._adopt(set(adopt))
            finally:
                self._give_back(theirs, scripted)
        finally:  # again, where Ctrl-C came in between
            self._give_back(theirs, scripted)
            parametrize._cache, parametrize._cache_enabled = cached
        if probe:
            # by way of .data a buffer may move without a version
            self._moving |= {id(t) for t in copied if swaps[id(t)]._version or not same_bits(swaps[id(t)], t)}
        elif not adopt and versions != [t._version for t in self._others]:
            raise ValueError(
                "forward changed a buffer in place that it left alone when this objective was made, so f would not be "
                "a function of theta: make the objective anew, with data for which forward does the same"
            )

    def _fresh(self, swaps: Mapping[int, Any]) -> Iterator[dict[str, Any]]:
        for state, mutable in zip(self._states, self._mutable, strict=True):
            new = state.copy()
            for key, nested in mutable:
                new[key] = renewed(new[key], swaps) if swaps or nested else new[key].copy()
            if swaps:
                for key, value in state.items():
                    if id(value) in swaps:
                        new[key] = swaps[id(value)]
            yield new

    def _adopt(self, modules: set[nn.Module]) -> None:
        if modules:
            moving = [i for i, t in enumerate(self._tensors()) if id(t) in self._moving]
            for module, state in zip(self.modules, self._states, strict=True):
                if module in modules:
                    state.update(vars(module))
            tensors = self._tensors()
            self._moving = {id(tensors[i]) for i in moving}
            self._index()

    def _give_back(self, theirs: Sequence[dict], scripted: Any) -> None:
        for module, state in zip(self.modules, theirs, strict=True):
            object.__setattr__(module, "__dict__", state)
        self._scripted.give_back(scripted)

    def _check_kinds(self) -> None:
        for module, kind in zip(self.modules, self._kinds, strict=True):
            if type(module) is not kind:
                raise ValueError(
                    f"model has a {kind.__name__} that has become a {type(module).__name__} since this objective was "
                    "made, as parametrizations do: make the objective anew"
                )

    @property
    def scripted(self) -> bool:
        """Whether parts are TorchScript."""
        return bool(self._scripted)

    @property
    def moving(self) -> int:
        """How many buffers forward changes in place."""
        return len(self._moving)

    def originals(self) -> dict[str, Tensor]:
        """The user's own parameters and buffers."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def differing(self, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the user's own tensors that ours may differ from: theta's, and others with other values."""
        ours = self.named_tensors() if originals else {}
        return {
            name: tensor
            for name, tensor in originals.items()
            if name in self.space.names or not same_bits(ours[name].detach(), tensor.detach())
        }

    def unpad(self, name: str) -> None:
        """Let embeddings whose weight has that name have gradients in all rows."""
        own = self.weights[self.space.names.index(name)]
        for module, state in zip(self.modules, self._states, strict=True):
            if isinstance(module, EMBEDDINGS) and state["_parameters"].get("weight") is own:
                state["padding_idx"] = None

    # --- others of the same code ----------------------------------------------------------------------------------

    def sibling(self, space: ParameterSpace | None = None, *, dtype: torch.dtype | None = None) -> Network:
        """The same code with copies of all tensors.

        Args:
            space: some of the names of ours: the other tensors of theta are fixed where they stand.
            dtype: of all floating tensors.
        """
        other = object.__new__(Network)
        other.model, other.modules, other._kinds = self.model, self.modules, self._kinds
        other.space = self.space if space is None else space
        other.dtype, other.converted = dtype or self.dtype, self.converted or dtype is not None
        other._scripted = self._scripted
        own = dict(zip(self.space.names, self.weights, strict=True))
        other._take(self._states, [own[name] for name in other.space.names], dtype)
        moving = [i for i, t in enumerate(self._tensors()) if id(t) in self._moving]
        tensors = other._tensors()
        other._moving = {id(tensors[i]) for i in moving}
        return other

    def named_tensors(self) -> dict[str, Tensor]:
        """Our parameters and buffers by the names that the network gives them."""
        with self.lent() as model:
            return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def load(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Take all tensors of ``checkpoint``, and tell what was done to make them fit.

        Raises:
            ValueError: names or shapes do not fit.
        """
        with self.lent(adopt=self.modules) as model:
            return checkpoint.load_into(model)

    def named_buffers_of(self, modules: Iterable[nn.Module]) -> dict[str, Tensor]:
        """Our buffers of some modules, by the names that the network gives them."""
        chosen, found = set(modules), {}
        with self.lent() as model:
            for name, module in model.named_modules():
                if module in chosen:
                    found.update(module.named_buffers(name, recurse=False))
        return found

    def take_batch_statistics(self, norms: Iterable[nn.Module]) -> None:
        """Let BatchNorm layers use each batch's statistics, and take their buffers for ones that move in place."""
        chosen = set(norms)
        for module, state in zip(self.modules, self._states, strict=True):
            if module in chosen:
                state["training"] = True
                self._moving |= {id(buffer) for buffer in state["_buffers"].values() if buffer is not None}

    def _tensors(self) -> list[Tensor]:
        """All of ours, each once."""
        return list({id(t): t for t in found([*self._states, *self._scripted.tensors], Tensor)}.values())
