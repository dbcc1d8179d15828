"""What the cases, the workers and report.py import."""
