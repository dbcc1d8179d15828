"""A page of what was measured: one HTML file without scripts; see docs/report.md."""

from wals_gpu.report.write import write_report

__all__ = ["write_report"]
