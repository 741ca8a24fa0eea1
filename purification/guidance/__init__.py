"""Terms that steer a purifier; each file has one method."""

from purification.guidance.agdm import AGDM
from purification.guidance.base import Guidance, Moment, Potential
from purification.guidance.classifier import ClassifierGuidance
from purification.guidance.contrastive import ContrastiveGuidance
from purification.guidance.gdmp import GDMP

__all__ = [
    "AGDM", "GDMP", "ClassifierGuidance", "ContrastiveGuidance", "Guidance", "Moment", "Potential",
]  # fmt: skip
