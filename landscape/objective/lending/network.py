"""The user's network evaluated with other tensors.

An objective owns its weights and buffers, and uses the code of the user's modules. While f is evaluated, the network
is *lent*: the ``__dict__`` of every module is replaced by one with our tensors in the place of the user's. Afterwards
the original one is restored, also after an error. A deep copy would not do: closures, bound methods and compiled
forwards would still read the original weights, and modules that store activations cannot be copied.

The replacements are copies of the user's dictionaries when the objective was made, and are made again for each
evaluation; the contents of containers in modules are replaced too. So what forward stores in attributes, lists or
buffers is discarded, and f is a function. State that forward stores in other Python objects cannot be restored.

Not thread-safe: one thread at a time can evaluate a network.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from landscape.checkpoints import Checkpoint
from landscape.objective.lending import validation
from landscape.objective.lending.containers import (
    Container,
    all_instances,
    containers_in,
    copies_of,
    copy_keys,
    fresh_states,
)
from landscape.objective.lending.copies import detached_copy, identical, parameter_like
from landscape.objective.lending.modes import EMBEDDINGS, attribute_overrides, training_mode
from landscape.objective.lending.scripted import Scripted
from landscape.parameters import ParameterSpace

__all__ = ["Network"]


class Network:
    """The modules of a network and of its loss, and our tensors, which replace theirs while they are lent.

    Args:
        model: the network, whose trainable parameters make up theta.
        others: further modules that are evaluated with it, such as a criterion. Their parameters are fixed.
        dtype: of theta and of all other floating tensors. Default: theirs, or float32 if they are half precision.
        training: whether modules are in training mode; normalisation and dropout never are.

    Attributes:
        model: the user's network.
        space: the names and shapes of theta.
        flat: theta, of shape (n,).
        weights: its tensors, views of ``flat`` that require gradients.
        modules: all modules, each once.
        dtype: of theta.
        converted: whether floating tensors are converted to ``dtype``.
        scripted: the tensors and modes of its ScriptModules; true if there are any.

    Raises:
        TypeError: the network is not an ``nn.Module``.
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
        validation.check_initialised(model)
        self.model = model
        further = dict.fromkeys(m for root in others for m in root.modules() if validation.is_copyable(m))
        self.modules = list(dict.fromkeys((*model.modules(), *further)))
        self.transient_types: set[type[nn.Module]] = set()  # of modules that forward creates in each call
        self.space = ParameterSpace.of(model)
        named = dict(model.named_parameters())
        theirs: list[Tensor] = [named[name] for name in self.space.names]
        validation.check_memory(model, theirs)
        self.dtype = validation.checked_dtype(theirs, dtype)
        self.converted = dtype is not None or theirs[0].dtype in validation.HALF_PRECISION
        self._classes = [type(m) for m in self.modules]
        self.scripted = Scripted(self.modules)
        self._arrays: set[int] = set()  # ids of arrays that forward writes into
        states = [dict(vars(m)) for m in self.modules]
        self._copy_tensors(states, containers_in(states), theirs, self.dtype if self.converted else None)
        self._training = training
        self.scripted.set_training(self.modules, training)
        self._set_modes(set(self.modules))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _copy_tensors(
        self, states: list[dict[str, Any]], held: list[Container], theta: list[Tensor], dtype: torch.dtype | None
    ) -> None:
        """Copy all tensors in ``states`` and ``held``, those of ``theta`` into views of one vector."""
        self.flat = torch.cat([p.detach().reshape(-1) for p in theta]).to(dtype or theta[0].dtype, copy=True)
        views = self.space.views(self.flat).values()
        self.weights = [parameter_like(view, given) for view, given in zip(views, theta, strict=True)]
        ours: dict[int, Any] = {id(p): own for p, own in zip(theta, self.weights, strict=True)}
        copies, self._held = copies_of([*states, *self.scripted.tensors], held, ours, dtype)
        self._states, self.scripted = copies[: len(states)], self.scripted.with_tensors(copies[len(states) :])
        self._mutated: set[int] = set()
        self._index()

    def _index(self) -> None:
        """Find the objects that an evaluation has to copy or to check."""
        theta = {id(w) for w in self.weights}
        self._others = [t for t in self._tensors() if id(t) not in theta]
        self._generators = list(all_instances(torch.Generator, self._states, self._held))
        self._copy_keys = copy_keys(self._states, self._held)

    def _set_modes(self, modules: Collection[nn.Module]) -> None:
        for module, state in zip(self.modules, self._states, strict=True):
            if module in modules and not isinstance(module, torch.jit.ScriptModule):
                state.update(attribute_overrides(module), training=training_mode(module, self._training))

    @torch.inference_mode(False)
    @torch.no_grad()
    def add_module(self, module: nn.Module) -> None:
        """Add a module with its submodules, to be treated like those of ``others``.

        Raises:
            ValueError: its tensors are not plain and initialised.
        """
        validation.check_initialised(module, f"a {type(module).__name__} that forward or the loss calls")
        new = [m for m in module.modules() if m not in set(self.modules)]
        ours: dict[int, Any] = {id(t): t for t in (*self.weights, *self._others)}
        for theirs, state in zip(self.modules, self._states, strict=True):
            for key in ("_parameters", "_buffers"):  # which it may share with known modules
                own = state.get(key, {})
                ours.update((id(t), own[name]) for name, t in vars(theirs).get(key, {}).items() if name in own)
        states, known = [dict(vars(m)) for m in new], {id(h.container) for h in self._held}
        held = [*self._held, *(h for h in containers_in(states) if id(h.container) not in known)]
        scripted = Scripted(new)
        scripted.set_training(new, self._training)
        copies, self._held = copies_of([*states, *scripted.tensors], held, ours, self.dtype if self.converted else None)
        self.modules, self._classes = [*self.modules, *new], [*self._classes, *map(type, new)]
        self._states = [*self._states, *copies[: len(new)]]
        self.scripted = self.scripted + scripted.with_tensors(copies[len(new) :])
        self._set_modes(set(new))
        self._index()

    # --- lending --------------------------------------------------------------------------------------------------

    def lent(
        self, weights: Sequence[Tensor] | None = None, *, adopt: Iterable[nn.Module] = (), probe: bool = False
    ) -> AbstractContextManager[nn.Module]:
        """Context in which the user's network uses our tensors.

        Args:
            weights: to use instead of ``self.weights``. Default: those.
            adopt: the modules whose buffers, as they are at the end, we keep.
            probe: whether to find the tensors that forward changes in place; all but theta are copied for this.

        Raises:
            ValueError: a module changed its class since, or a buffer was changed in place that no ``probe`` found.
        """
        swapped = self._swapped(weights, adopt, probe)
        return _outside_inference(swapped) if torch.is_inference_mode_enabled() else swapped

    @contextmanager
    def _swapped(self, weights: Sequence[Tensor] | None, adopt: Iterable[nn.Module], probe: bool) -> Iterator[Any]:
        swaps: dict[int, Any] = {id(g): g.clone_state() for g in self._generators}
        if weights is not None:
            swaps.update((id(own), given) for own, given in zip(self.weights, weights, strict=True))
            for own, given in zip(self.weights, weights, strict=True):
                vars(given).update(vars(own))  # attributes that forward may read
        copied = [t for t in self._others if probe or id(t) in self._mutated] if probe or self._mutated else []
        for tensor in copied:
            swaps[id(tensor)] = detached_copy(tensor, None)
        validation.check_classes(self.modules, self._classes)
        versions = [t._version for t in self._others]
        theirs = [vars(m) for m in self.modules]
        held = [h for h in self._held if probe or not h.is_array or id(h.container) in self._arrays]
        contents = [h.current() for h in held]
        cached = parametrize._cache, parametrize._cache_enabled
        scripted = self.scripted.state()
        try:
            try:
                for module, state in zip(self.modules, fresh_states(self._states, self._copy_keys, swaps), strict=True):
                    object.__setattr__(module, "__dict__", state)
                for one in held:
                    one.write(one.with_swaps(swaps))
                self.scripted.lend(swaps)
                parametrize._cache, parametrize._cache_enabled = {}, 0  # of the user's own weights
                yield self.model
                self._adopt(set(adopt))
                if probe:
                    self._arrays |= {id(h.container) for h in held if h.is_array and not h.equals(h.content)}
            finally:
                self._restore(theirs, held, contents, scripted)
        finally:  # again, in case of a KeyboardInterrupt during the first restore
            self._restore(theirs, held, contents, scripted)
            parametrize._cache, parametrize._cache_enabled = cached
        if probe:
            # by .data a buffer may change without a new version
            self._mutated |= {id(t) for t in copied if swaps[id(t)]._version or not identical(swaps[id(t)], t)}
        elif not adopt and versions != [t._version for t in self._others]:
            raise ValueError(
                "forward changed a buffer in place that it left alone when this objective was made, so f would not be "
                "a function of theta: make the objective anew, with data for which forward does the same"
            )

    def _adopt(self, modules: set[nn.Module]) -> None:
        if modules:
            mutated = self._mutated_indices()
            adopted = [(m, state) for m, state in zip(self.modules, self._states, strict=True) if m in modules]
            for module, state in adopted:
                state.update(vars(module))
            now = containers_in([state for _, state in adopted])
            self._held = list({id(h.container): h for h in (*self._held, *now)}.values())
            self._set_mutated(mutated)
            self._index()

    def _restore(self, theirs: list[dict], held: list[Container], contents: list[Any], scripted: Any) -> None:
        for module, state in zip(self.modules, theirs, strict=True):
            object.__setattr__(module, "__dict__", state)
        for one, content in zip(held, contents, strict=True):
            one.write(content)
        self.scripted.restore(scripted)

    @property
    def mutated_buffers(self) -> int:
        """The number of buffers that forward changes in place."""
        return len(self._mutated)

    def unpad(self, name: str) -> None:
        """Remove the ``padding_idx`` of embeddings with that weight, so that all rows have gradients."""
        own = self.weights[self.space.names.index(name)]
        for module, state in zip(self.modules, self._states, strict=True):
            if isinstance(module, EMBEDDINGS) and state["_parameters"].get("weight") is own:
                state["padding_idx"] = None

    # --- copies and tensors ---------------------------------------------------------------------------------------

    def clone(self, space: ParameterSpace | None = None, *, dtype: torch.dtype | None = None) -> Network:
        """The same code with copies of all tensors.

        Args:
            space: a subset of our names; the other tensors of theta become constants.
            dtype: of all floating tensors.
        """
        other = copy.copy(self)
        other.space = self.space if space is None else space
        other.dtype, other.converted = dtype or self.dtype, self.converted or dtype is not None
        own = dict(zip(self.space.names, self.weights, strict=True))
        other._copy_tensors(self._states, self._held, [own[name] for name in other.space.names], dtype)
        other._set_mutated(self._mutated_indices())
        return other

    def named_tensors(self) -> dict[str, Tensor]:
        """Our parameters and buffers, by the network's names."""
        with self.lent() as model:
            return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def load(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Load all tensors of ``checkpoint``, and return what was done to make them fit, in sentences.

        Raises:
            ValueError: names or shapes do not fit.
        """
        with self.lent(adopt=self.modules) as model:
            return checkpoint.load_into(model)

    def use_batch_statistics(self, norms: Iterable[nn.Module]) -> None:
        """Let BatchNorm layers use the statistics of each batch, and treat their buffers as changed in place."""
        chosen = set(norms)
        for module, state in zip(self.modules, self._states, strict=True):
            if module in chosen:
                state["training"] = True
                self._mutated |= {id(buffer) for buffer in state["_buffers"].values() if buffer is not None}

    def _tensors(self) -> list[Tensor]:
        """All of our tensors, each once."""
        tensors = all_instances(Tensor, [*self._states, *self.scripted.tensors], self._held)
        return list({id(t): t for t in tensors}.values())

    def _mutated_indices(self) -> list[int]:
        """The indices in ``_tensors()`` of those that forward changes in place."""
        return [i for i, t in enumerate(self._tensors()) if id(t) in self._mutated]

    def _set_mutated(self, indices: Sequence[int]) -> None:
        tensors = self._tensors()
        self._mutated = {id(tensors[i]) for i in indices}


@contextmanager
def _outside_inference(inner: AbstractContextManager[nn.Module]) -> Iterator[nn.Module]:
    """``inner`` without inference mode, whose tensors have no version and cannot be saved in a graph."""
    graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(graph), inner as model:
        yield model
