"""A tiny network of diffusers and its scheduler, for tests that need the library."""

from typing import Any

from tests.support.optional import installed


def network(classes: int | None = None, **settings: Any) -> Any:
    """A tiny UNet2DModel with attention, frozen, in evaluation mode."""
    tiny: dict[str, Any] = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "layers_per_block": 1,
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4,
        "attention_head_dim": 8, "num_class_embeds": classes,
    }  # fmt: skip
    return installed("diffusers").UNet2DModel(**tiny | settings).eval().requires_grad_(False)


def scheduler(**settings: Any) -> Any:
    return installed("diffusers").DDPMScheduler(clip_sample=False, **settings)
