"""Several checkpoints of one problem, looked at in the same way."""

from landscape.compare.analyses import ANALYSES
from landscape.compare.analysis import Analysis, Picture, Row, Task
from landscape.compare.run import compare
from landscape.compare.settings import CompareSettings
from landscape.compare.verdicts import Verdict, verdicts

__all__ = ["ANALYSES", "Analysis", "CompareSettings", "Picture", "Row", "Task", "Verdict", "compare", "verdicts"]
