"""The loss along lines and paths and over planes through theta; NaN and inf stay in the results."""

from landscape.slices.line import line, line_band
from landscape.slices.path import path
from landscape.slices.plane import plane
from landscape.slices.sweep import estimate_seconds

__all__ = ["estimate_seconds", "line", "line_band", "path", "plane"]
