"""From results to tables, plots and one self-contained page."""

from glomo_dist.report.build import build
from glomo_dist.report.results import read_results
from glomo_dist.report.table import as_text

__all__ = ["as_text", "build", "read_results"]
