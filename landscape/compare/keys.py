"""What a record depends on, as one key by which a store knows it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from landscape.checkpoints import Checkpoint
from landscape.compare.analysis import Analysis
from landscape.compare.settings import CompareSettings
from landscape.results import digest_of

__all__ = ["Keys"]


class Keys:
    """The keys of a comparison's records.

    Args:
        provenance: what was compared.
        losses: the training loss of each checkpoint; to six digits they tell one loss function from another.
        settings: of the comparison.
        network: as its modules print.
    """

    def __init__(
        self, provenance: Mapping[str, Any], losses: Mapping[str, float], settings: CompareSettings, network: str
    ) -> None:
        self._losses, self._settings, self._digests = losses, settings, provenance["sha256"]["checkpoints"]
        self._common = {
            "problem": provenance["problem"],
            "network": network,
            "version": provenance["versions"]["landscape-toolkit"],
            "train": provenance["sha256"]["train"],
            "test": provenance["sha256"]["test"],
            "weight_decay": settings.weight_decay,
        }

    def of(self, analysis: Analysis, about: Sequence[Checkpoint], needed: Mapping[str, Any]) -> str:
        """That of an analysis of one or several checkpoints: of these, the data, its own settings and what it needs."""
        depends = {
            **self._common,
            "analysis": analysis.name,
            "options": dict(analysis.options),
            "checkpoints": [(c.name, self._digests[c.name], f"{self._losses[c.name]:.6g}") for c in about],
            "settings": {name: getattr(self._settings, name) for name in analysis.settings},
            "needed": {name: _digest(record) for name, record in needed.items()},
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _digest(record: Any) -> Any:
    if isinstance(record, dict):
        return {name: digest_of(each) for name, each in record.items()}
    return digest_of(record)
