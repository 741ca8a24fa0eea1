"""The program `rdc classify`."""

import json
import sys
from pathlib import Path

from tqdm import tqdm

from rdc.classifier import RobustDiffusionClassifier
from rdc.commands.classify_folder import PREDICTIONS, classify_files, classify_folder
from rdc.commands.config import Classify
from rdc.image_files import image_files
from rdc.images import spelled
from rdc.runs.device import default_device
from rdc.text import printable


def main(command: Classify) -> int:
    """Print the predictions; the exit status is 1 where an image has none."""
    if command.batch_size < 1:
        raise ValueError(f"batch_size={command.batch_size} must be at least 1")
    if command.out is not None:
        return classify_into(command, command.out)
    files = image_files(command.path)
    model = RobustDiffusionClassifier.from_pretrained(command.model, seed=command.seed)
    model.to(default_device())
    width = max(len(printable(file)) for file in files)
    if not command.json:
        print(f"{'image':<{width}}  {'class':>12}  {'p':>6}  {'second':>12}  {'p':>6}")
    failed = converted = 0
    chunks = [files[i : i + command.batch_size] for i in range(0, len(files), command.batch_size)]
    for chunk in tqdm(chunks, disable=len(chunks) == 1, unit="batch"):
        rows = classify_files([str(file) for file in chunk], model, resize=command.resize)
        for row in rows:
            failed += "error" in row
            converted += "converted" in row
            tqdm.write(json.dumps(row) if command.json else table_row(row, width))
    shape = spelled(model.denoiser.image_shape)
    print(f"model {printable(command.model)}, for {shape} images", file=sys.stderr)
    if converted:
        print(f"{converted} of {len(files)} images were converted to {shape}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(files)} images could not be classified", file=sys.stderr)
    return int(failed > 0)


def classify_into(command: Classify, out: Path) -> int:
    """Write the predictions into the folder `out`."""
    # accelerate takes seconds to import.
    from accelerate import PartialState

    failed = classify_folder(
        command.path,
        out,
        command.model,
        batch_size=command.batch_size,
        seed=command.seed,
        resize=command.resize,
    )
    state = PartialState()
    if state.is_main_process:
        print(f"wrote {out / PREDICTIONS}; {failed} images could not be classified")
    state.destroy_process_group()
    return 0


def table_row(row: dict, width: int) -> str:
    """An image's name, its two most probable classes and their probabilities, or its error."""
    name = f"{printable(row['image']):<{width}}"
    if "error" in row:
        return f"{name}  {printable(row['error'])}"
    best = sorted(row["probabilities"].items(), key=lambda item: -item[1])[:2]
    return name + "".join(f"  {printable(label):>12}  {p:6.3f}" for label, p in best)
