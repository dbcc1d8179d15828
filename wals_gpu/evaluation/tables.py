"""The tables of :mod:`wals_gpu.data.tables`, for the report and the command line."""

from wals_gpu.data.tables import format_table, html_table

__all__ = ["format_table", "html_table"]
