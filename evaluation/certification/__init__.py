"""Certified radii of randomized smoothing."""

from evaluation.certification.certificate import Certificate, Certification
from evaluation.certification.certify import certify
from evaluation.certification.config import SmoothingConfig
from evaluation.certification.smoothed import SmoothedClassifier

__all__ = ["Certificate", "Certification", "SmoothedClassifier", "SmoothingConfig", "certify"]
