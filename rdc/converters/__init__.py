"""Published weights as directories of this library; see `convert`."""

from rdc.choices import Format
from rdc.converters.classifiers import ClassifierFacts
from rdc.converters.conversion import Conversion, convert

__all__ = ["ClassifierFacts", "Conversion", "Format", "convert"]
