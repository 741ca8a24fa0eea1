"""The public names of `purification`."""

from purification.config import PurifierConfig
from purification.methods import build
from purification.one_shot import OneShotDenoiser
from purification.purifier import DiffusionPurifier
from purification.torchsde_purifier import TorchsdePurifier

__all__ = ["DiffusionPurifier", "OneShotDenoiser", "PurifierConfig", "TorchsdePurifier", "build"]
