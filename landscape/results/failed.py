"""What stands in a store in place of a record that could not be made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Failed"]


@dataclass(frozen=True)
class Failed:
    """An analysis that ended in an error."""

    reason: str  # the kind of error, and what it says
