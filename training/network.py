"""Settings of a denoiser's network that leave to the data what the data determine."""

from dataclasses import asdict
from typing import Any

from rdc.data import Dataset
from rdc.networks.unet_config import UNetConfig
from rdc.runs.settings import flag


def network_for(config: UNetConfig, data: Dataset, source: str) -> UNetConfig:
    """The network for the images of `data`, which `--data` calls `source`.

    Raises:
        ValueError: a setting contradicts the data, or is impossible; its flag is named.
    """
    channels, size, _ = data.shape
    given, own = asdict(config), {"image_size": size, "channels": channels}
    own["num_classes"] = 0 if config.conditioning == "none" else len(data.class_names)
    for name, value in own.items():
        if given[name] not in (None, value):
            raise ValueError(
                f"{flag(f'network.{name}')} {given[name]}, but {source} has {value}; leave this "
                "flag out (--resize and --channels convert the images of a folder)"
            )
    settings: dict[str, Any] = given | own
    try:
        return UNetConfig(**settings)
    except ValueError as error:
        raise ValueError(f"--network does not fit {source}: {error}") from error
