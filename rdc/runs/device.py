"""Choice of the device that programs compute on."""

import torch


def default_device() -> torch.device:
    """The accelerator of this machine, or the CPU where there is none.

    Apple's GPUs count as none: they have no float64, which projections onto balls and the sums of a
    training run are computed in.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None or device.type == "mps":
        return torch.device("cpu")
    return device
