"""The public names of `evaluation.certification`."""

from evaluation.certification.certificate import Certificate, Certification
from evaluation.certification.config import SmoothingConfig
from evaluation.certification.smoothed import SmoothedClassifier

__all__ = ["Certificate", "Certification", "SmoothedClassifier", "SmoothingConfig"]
