"""A comparison as a page to read."""

from landscape.report.page import figures, verdicts, write_report

__all__ = ["figures", "verdicts", "write_report"]
