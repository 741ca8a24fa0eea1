"""The processes and the data of a trainer."""

from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers

from rdc.data import Dataset, load
from rdc.runs.device import default_device
from training.config import RunConfig

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def start_accelerator(config: RunConfig) -> Accelerator:
    """An accelerator on the machine's devices.

    Without a GPU, accelerate joins several processes only when told that it is on a CPU; left to
    itself each of them would train alone.
    """
    cpu = default_device().type == "cpu"
    if cpu and config.precision == "fp16":
        raise ValueError("--precision fp16 needs a GPU; on a CPU use bf16 or no")
    tracker = None if config.tracker == "none" else config.tracker
    # accelerate silently drops a tracker that is not installed.
    if tracker and tracker not in [str(name.value) for name in get_available_trackers()]:
        raise ValueError(f"--tracker {tracker} is not installed: pip install {tracker}")
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=config.precision, log_with=tracker, project_dir=config.out
    )
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"accelerate is configured for {accelerator.distributed_type.value}, but training uses "
            "DistributedDataParallel alone: give accelerate launch --multi_gpu"
        )
    parts = accelerator.num_processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size {config.batch_size} must be divisible by the {parts} parts: "
            f"{accelerator.num_processes} processes x --accumulate {config.accumulate}"
        )
    return accelerator


def load_data(config: RunConfig, accelerator: Accelerator) -> tuple[Dataset, Dataset]:
    """Training and validation images, square and of one shape.

    The main process decodes files first; the others share them.
    """
    size = config.resize
    shape = None if size is None else (config.channels, size, size)
    with accelerator.main_process_first():
        data = load(config.data, "train", shape=shape, resize=size is not None)
        validation = load(config.data, "validation", shape=data.shape, resize=size is not None)
    for note in {*data.notes, *validation.notes}:
        accelerator.print(note)
    _, height, width = data.shape
    if height != width:
        raise ValueError(
            f"--data {config.data}: the images are {height}x{width}; give --resize to crop them"
        )
    return data, validation
