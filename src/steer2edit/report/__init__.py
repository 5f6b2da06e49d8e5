"""Results of a run and its weight edit → one self-contained HTML page. Never loads a model."""

from steer2edit.report.comparison_page import write_comparison_page as write_comparison_page
from steer2edit.report.run_page import render_report as render_report, write_report as write_report
from steer2edit.report.scorecard_page import (
    render_scorecard as render_scorecard,
    write_stress_page as write_stress_page,
)
