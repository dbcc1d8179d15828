"""A page of what was measured: one HTML file without scripts; see docs/report.md."""

from wals_gpu.report.write import check_report_path, write_report

__all__ = ["check_report_path", "write_report"]
