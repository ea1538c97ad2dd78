"""Several checkpoints of one problem, looked at in the same way."""

from landscape.compare.analyses import ANALYSES
from landscape.compare.analysis import Analysis, Picture, Row, Task
from landscape.compare.groups import GroupVerdict, group_verdicts, groups_by_name, paired_by_seed
from landscape.compare.replicates import Difference, difference_of_means, holm, permutation_p, runs_to_decide
from landscape.compare.run import compare
from landscape.compare.settings import CompareSettings
from landscape.compare.verdicts import Verdict, verdicts

__all__ = [
    "ANALYSES",
    "Analysis",
    "CompareSettings",
    "Difference",
    "GroupVerdict",
    "Picture",
    "Row",
    "Task",
    "Verdict",
    "compare",
    "difference_of_means",
    "group_verdicts",
    "groups_by_name",
    "holm",
    "paired_by_seed",
    "permutation_p",
    "runs_to_decide",
    "verdicts",
]
