"""Published weights as directories of this library; see `convert`."""

from rdc.converters.classifiers import ClassifierFacts
from rdc.converters.conversion import Conversion, Format, convert

__all__ = ["ClassifierFacts", "Conversion", "Format", "convert"]
