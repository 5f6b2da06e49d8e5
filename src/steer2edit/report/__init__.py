"""Results of a run and its weight edit → one self-contained HTML page. Never loads a model."""

from steer2edit.report.html import render_report, write_report

__all__ = ["render_report", "write_report"]
