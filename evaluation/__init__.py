"""Attacks and certificates: how robust a defense is, from above and from below."""

from evaluation.certification import certify

__all__ = ["certify"]
