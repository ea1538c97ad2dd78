"""A network's code with tensors of ours.

An objective owns its weights and buffers and borrows the code: while f is evaluated, every module of the user's works
on a ``__dict__`` of ours, in which our tensors stand where theirs do. Then it has its own back, untouched, whatever
happened. A deep copy cannot do this: closures, bound methods and compiled forwards would go on reading the original's
weights, and networks that keep activations cannot be copied.

Our dictionaries are as the user's were when the objective was made, and are made anew for each evaluation; what is in
the containers that modules hold is exchanged, too. So what forward leaves behind as an attribute, in a list or in a
buffer, is forgotten, and f is a function. State that forward keeps in other Python objects is not ours to put back.

Not thread-safe: while one thread evaluates, the network is lent.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from landscape.checkpoints import Checkpoint
from landscape.objective.lending import acceptance
from landscape.objective.lending.containers import (
    Held,
    anew,
    every,
    held_by,
    own_copy,
    owned,
    parameter_like,
    same_bits,
    which,
)
from landscape.objective.lending.modes import EMBEDDINGS, mode_of, settings_of
from landscape.objective.lending.scripted import Scripted
from landscape.parameters import ParameterSpace

__all__ = ["Network"]


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
        scripted: what its ScriptModules hold outside Python; true where there are any.

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
        acceptance.check_initialised(model)
        self.model = model
        further = dict.fromkeys(m for root in others for m in root.modules() if acceptance.can_be_owned(m))
        self.modules = list(dict.fromkeys((*model.modules(), *further)))
        self.made_anew: set[type[nn.Module]] = set()  # of modules: forward makes some at each call
        self.space = ParameterSpace.of(model)
        named = dict(model.named_parameters())
        theirs = [named[name] for name in self.space.names]
        acceptance.check_memory(model, theirs)
        self.dtype = acceptance.checked_dtype(theirs, dtype)
        self.converted = dtype is not None or theirs[0].dtype in acceptance.HALF
        self._kinds = [type(m) for m in self.modules]
        self.scripted = Scripted(self.modules)
        self._arrays: set[int] = set()  # which forward writes into
        states = [dict(vars(m)) for m in self.modules]
        self._take(states, held_by(states), theirs, self.dtype if self.converted else None)
        self._training = training
        self.scripted.set_training(self.modules, training)
        self._set(set(self.modules))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _take(
        self, states: list[dict[str, Any]], held: list[Held], theta: Sequence[Tensor], dtype: torch.dtype | None
    ) -> None:
        """Own copies of all tensors in ``states`` and ``held``, those of ``theta`` as views of one vector."""
        self.flat = torch.cat([p.detach().reshape(-1) for p in theta]).to(dtype or theta[0].dtype, copy=True)
        views = self.space.views(self.flat).values()
        self.weights = [parameter_like(view, given) for view, given in zip(views, theta, strict=True)]
        ours: dict[int, Any] = {id(p): own for p, own in zip(theta, self.weights, strict=True)}
        copies, self._held = owned([*states, *self.scripted.tensors], held, ours, dtype)
        self._states, self.scripted = copies[: len(states)], self.scripted.with_tensors(copies[len(states) :])
        self._moving: set[int] = set()
        self._index()

    def _index(self) -> None:
        """What an evaluation has to copy and to watch."""
        theta = {id(w) for w in self.weights}
        self._others = [t for t in self._tensors() if id(t) not in theta]
        self._generators = list(every(torch.Generator, self._states, self._held))
        self._which = which(self._states, self._held)

    def _set(self, modules: Collection[nn.Module]) -> None:
        for module, state in zip(self.modules, self._states, strict=True):
            if module in modules and not isinstance(module, torch.jit.ScriptModule):
                state.update(settings_of(module), training=mode_of(module, self._training))

    @torch.inference_mode(False)
    @torch.no_grad()
    def take_in(self, module: nn.Module) -> None:
        """Own a module, and those in it, from now on.

        Raises:
            ValueError: its tensors cannot be.
        """
        acceptance.check_initialised(module, f"a {type(module).__name__} that forward or the loss calls")
        new = [m for m in module.modules() if m not in set(self.modules)]
        ours: dict[int, Any] = {id(t): t for t in (*self.weights, *self._others)}
        for theirs, state in zip(self.modules, self._states, strict=True):
            for key in ("_parameters", "_buffers"):  # which it may have in common with what is owned
                own = state.get(key, {})
                ours.update((id(t), own[name]) for name, t in vars(theirs).get(key, {}).items() if name in own)
        states, known = [dict(vars(m)) for m in new], {id(h.container) for h in self._held}
        held = [*self._held, *(h for h in held_by(states) if id(h.container) not in known)]
        scripted = Scripted(new)
        scripted.set_training(new, self._training)
        copies, self._held = owned([*states, *scripted.tensors], held, ours, self.dtype if self.converted else None)
        self.modules, self._kinds = [*self.modules, *new], [*self._kinds, *map(type, new)]
        self._states = [*self._states, *copies[: len(new)]]
        self.scripted = self.scripted + scripted.with_tensors(copies[len(new) :])
        self._set(set(new))
        self._index()

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
            ValueError: the user has changed what kind of module one is since; a buffer was changed in place that no
                ``probe`` found changing.
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
        acceptance.check_kinds(self.modules, self._kinds)
        versions = [t._version for t in self._others]
        theirs = [vars(m) for m in self.modules]
        held = [h for h in self._held if probe or not h.array or id(h.container) in self._arrays]
        contents = [h.now() for h in held]
        cached = parametrize._cache, parametrize._cache_enabled
        scripted = self.scripted.state()
        try:
            try:
                for module, state in zip(self.modules, anew(self._states, self._which, swaps), strict=True):
                    object.__setattr__(module, "__dict__", state)
                for one in held:
                    one.put(one.with_swaps(swaps))
                self.scripted.lend(swaps)
                parametrize._cache, parametrize._cache_enabled = {}, 0  # of the user's own weights
                yield
                self._adopt(set(adopt))
                if probe:
                    self._arrays |= {id(h.container) for h in held if h.array and not h.has(h.content)}
            finally:
                self._give_back(theirs, held, contents, scripted)
        finally:  # again, where Ctrl-C came in between
            self._give_back(theirs, held, contents, scripted)
            parametrize._cache, parametrize._cache_enabled = cached
        if probe:
            # by way of .data a buffer may move without a version
            self._moving |= {id(t) for t in copied if swaps[id(t)]._version or not same_bits(swaps[id(t)], t)}
        elif not adopt and versions != [t._version for t in self._others]:
            raise ValueError(
                "forward changed a buffer in place that it left alone when this objective was made, so f would not be "
                "a function of theta: make the objective anew, with data for which forward does the same"
            )

    def _adopt(self, modules: set[nn.Module]) -> None:
        if modules:
            moving = self._places()
            adopted = [pair for pair in zip(self.modules, self._states, strict=True) if pair[0] in modules]
            for module, state in adopted:
                state.update(vars(module))
            now = held_by([state for _, state in adopted])
            self._held = list({id(h.container): h for h in (*self._held, *now)}.values())
            self._watch(moving)
            self._index()

    def _give_back(self, theirs: Sequence[dict], held: Sequence[Held], contents: Sequence[Any], scripted: Any) -> None:
        for module, state in zip(self.modules, theirs, strict=True):
            object.__setattr__(module, "__dict__", state)
        for one, content in zip(held, contents, strict=True):
            one.put(content)
        self.scripted.give_back(scripted)

    @property
    def moving(self) -> int:
        """How many buffers forward changes in place."""
        return len(self._moving)

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
        other = copy.copy(self)
        other.space = self.space if space is None else space
        other.dtype, other.converted = dtype or self.dtype, self.converted or dtype is not None
        own = dict(zip(self.space.names, self.weights, strict=True))
        other._take(self._states, self._held, [own[name] for name in other.space.names], dtype)
        other._watch(self._places())
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

    def take_batch_statistics(self, norms: Iterable[nn.Module]) -> None:
        """Let BatchNorm layers use each batch's statistics, and take their buffers for ones that move in place."""
        chosen = set(norms)
        for module, state in zip(self.modules, self._states, strict=True):
            if module in chosen:
                state["training"] = True
                self._moving |= {id(buffer) for buffer in state["_buffers"].values() if buffer is not None}

    def _tensors(self) -> list[Tensor]:
        """All of ours, each once."""
        return list({id(t): t for t in every(Tensor, [*self._states, *self.scripted.tensors], self._held)}.values())

    def _places(self) -> list[int]:
        """Which of them forward changes in place."""
        return [i for i, t in enumerate(self._tensors()) if id(t) in self._moving]

    def _watch(self, places: Sequence[int]) -> None:
        tensors = self._tensors()
        self._moving = {id(tensors[i]) for i in places}
