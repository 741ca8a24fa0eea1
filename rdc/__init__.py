"""rdc: robust classification with diffusion models."""

from rdc.backbone import UNet, UNetConfig
from rdc.checkpoint import packaged_models
from rdc.classifier import (
    ClassifierConfig,
    DiffusionClassifier,
    Prediction,
    RDCConfig,
    RobustDiffusionClassifier,
    classify,
)
from rdc.defense import Defense
from rdc.denoiser import Denoiser, DenoiserConfig, DenoiserLike
from rdc.diffusers import DiffusersDenoiser
from rdc.image_classifier import ImageClassifier, ImageClassifierConfig
from rdc.likelihood import class_errors, class_losses, log_likelihood
from rdc.maximization import LikelihoodMaximizer, MaximizationConfig
from rdc.noise import Levels, Noise
from rdc.optimal import OptimalDenoiser

__all__ = [
    "ClassifierConfig",
    "Defense",
    "Denoiser",
    "DenoiserConfig",
    "DenoiserLike",
    "DiffusersDenoiser",
    "DiffusionClassifier",
    "ImageClassifier",
    "ImageClassifierConfig",
    "Levels",
    "LikelihoodMaximizer",
    "MaximizationConfig",
    "Noise",
    "OptimalDenoiser",
    "Prediction",
    "RDCConfig",
    "RobustDiffusionClassifier",
    "UNet",
    "UNetConfig",
    "class_errors",
    "class_losses",
    "classify",
    "log_likelihood",
    "packaged_models",
]
