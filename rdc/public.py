"""The public names of `rdc`."""

from rdc.classifier import (
    AmortizedDiffusionClassifier,
    DiffusionClassifier,
    RobustDiffusionClassifier,
)
from rdc.classifier_config import ClassifierConfig, MaximizationConfig, RDCConfig
from rdc.defense import Defense
from rdc.denoiser import Denoiser, DenoiserConfig, DenoiserLike
from rdc.elimination import Elimination, predict_by_elimination
from rdc.hub.checkpoint import packaged_models
from rdc.levels import Levels
from rdc.likelihood import class_errors, class_losses, log_likelihood
from rdc.maximization import LikelihoodMaximizer
from rdc.networks.diffusers import DiffusersDenoiser
from rdc.networks.image_classifier import ImageClassifier, ImageClassifierConfig
from rdc.networks.noised import NoisedDenoiser
from rdc.networks.normalize import Normalize
from rdc.networks.optimal import OptimalDenoiser
from rdc.networks.unet import UNet
from rdc.networks.unet_config import UNetConfig
from rdc.noise import Noise
from rdc.prediction import Prediction, classify

__all__ = [
    "AmortizedDiffusionClassifier", "ClassifierConfig", "Defense", "Denoiser", "DenoiserConfig",
    "DenoiserLike", "DiffusersDenoiser", "DiffusionClassifier", "Elimination", "ImageClassifier",
    "ImageClassifierConfig", "Levels", "LikelihoodMaximizer", "MaximizationConfig", "Noise",
    "NoisedDenoiser", "Normalize", "OptimalDenoiser", "Prediction", "RDCConfig",
    "RobustDiffusionClassifier", "UNet", "UNetConfig", "class_errors", "class_losses", "classify",
    "log_likelihood", "packaged_models", "predict_by_elimination",
]  # fmt: skip
