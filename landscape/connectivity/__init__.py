"""How minima are connected: barriers, hidden units in another network's order, curves of low loss."""

from landscape.connectivity.barriers import barrier, barrier_matrix
from landscape.connectivity.bezier import bezier_path
from landscape.connectivity.matching import Matching, match_weights

__all__ = ["Matching", "barrier", "barrier_matrix", "bezier_path", "match_weights"]
