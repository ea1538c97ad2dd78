"""Several checkpoints of one problem, looked at in the same way."""

from landscape.compare.run import compare
from landscape.compare.settings import CompareSettings

__all__ = ["CompareSettings", "compare"]
