"""A comparison as a page to read."""

from landscape.report.page import figures, write_report

__all__ = ["figures", "write_report"]
