"""The hidden units of one network put in another's order: the same function, as near to the other as may be."""

from landscape.matching.weights import Matching, match_weights

__all__ = ["Matching", "match_weights"]
