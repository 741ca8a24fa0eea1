"""Training that starts from another network's weights."""

from rdc.denoiser import Denoiser

HEADS = tuple(f"network.{name}." for name in (
    "head", "class_heads", "unconditional_head", "linear_head",
))  # fmt: skip
LABELS = "network.embed_label."


def warm_start(denoiser: Denoiser, source: str) -> None:
    """Give `denoiser` the weights of `source`, as `Denoiser.from_pretrained` takes it.

    Both must have the same trunk. Heads and label embeddings that only one of them has, as between
    a label-conditional or classifying network and a multi-head one, keep their weights.
    """
    theirs = Denoiser.from_pretrained(source).state_dict()
    mine = denoiser.state_dict()
    shared = {name for name in mine if name in theirs and mine[name].shape == theirs[name].shape}
    left = sorted({*mine, *theirs} - shared)
    strange = [name for name in left if not name.startswith((*HEADS, LABELS))]
    if strange:
        raise ValueError(
            f"--init {source} has another trunk than the network in training: {len(strange)} "
            f"tensors differ, for example {strange[0]}; give it the same --network settings"
        )
    denoiser.load_state_dict({**mine, **{name: theirs[name] for name in shared}})
