"""One page about finished evaluations, which opens anywhere and asks nothing of a network."""

from evaluation.report.page import write

__all__ = ["write"]
