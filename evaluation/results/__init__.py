"""Figures of an evaluation: metrics, protocols, comparisons and intervals."""
