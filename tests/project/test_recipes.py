"""Recipes start what exists: every module and every flag, and a rehearsal at tiny size."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from evaluation.sweep_config import SweepConfig
from rdc import RobustDiffusionClassifier
from tests.support.pictures import noise, save
from tests.support.programs import read_command
from training.config import CalibrationConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.sh"))
WHOLE = [
    name
    for name in RECIPES
    if name.startswith("cifar10-cpu") or not (name.startswith("cifar10-") or "settings" in name)
]
REHEARSED = ("teacher", "multihead", "classifiers", "calibrate", "table")
TINY = {
    "WIDTH": "8", "MULTIPLIERS": "1 2", "BLOCKS": "1", "ATTENTION": "", "HEAD_WIDTH": "4",
    "BATCH": "4", "STEPS": "2", "WARMUP": "1", "EVERY": "2", "ARCHITECTURE": "cnn-8",
    "IMAGES": "2", "ATTACKED": "2", "ATTACK_STEPS": "1", "TARGETS": "1", "QUERIES": "10",
    "DRAWS": "1", "ROWS": "2", "PURIFIER_STEPS": "2", "DEFENSES": "cnn rdc", "NORMS": "linf",
}  # fmt: skip

# In place of `python` and `accelerate`: writes down each module and its arguments, and leaves what
# a recipe looks for afterwards. Lines of Python with arguments run as they are.
RECORDER = f"""#!/usr/bin/env bash
if [[ $1 == - && $# -gt 1 ]]; then exec {sys.executable} "$@"; fi
if [[ $1 == - ]]; then cat > /dev/null; exit; fi
if [[ $1 == -c ]]; then echo 2; exit; fi
printf '%s\\0' "$@" >> "$LOG"; printf '\\n' >> "$LOG"
while [[ $# -gt 0 ]]; do
    if [[ $1 == --out ]]; then
        mkdir -p "$2"
        if [[ $2 != */"${{STOPPED:-}}" ]]; then
            echo '{{}}' | tee "$2/training.json" > "$2/calibration.json"
        fi
        printf '{{"images_per_second": 50}}\\n%.0s' 1 2 > "$2/history.jsonl"
    elif [[ $1 == --json ]]; then
        mkdir -p "$(dirname "$2")" && echo '{{}}' > "$2"
    elif [[ $1 == export ]]; then
        mkdir -p "$3"
    fi
    shift
done
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six training and two test images of each of ten classes."""
    root = tmp_path_factory.mktemp("cifar")
    names = [f"{s}/{c}/{i}.png" for s, n in (("train", 6), ("test", 2))
             for c in "abcdefghij" for i in range(n)]  # fmt: skip
    return save(root, {name: noise(seed, 32, 32, 3) for seed, name in enumerate(names)})


def asked(name: str, folder: Path, **settings: str) -> list[tuple[str, list[str]]]:
    """Modules and arguments that a recipe starts, in a copy of the folder of recipes."""
    shutil.copytree(ROOT / "recipes", folder / "recipes", dirs_exist_ok=True)
    tools, log = folder / "tools", folder / "log"
    tools.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    for tool in ("python", "accelerate", "nvidia-smi"):
        (tools / tool).write_text(RECORDER if tool != "nvidia-smi" else "#!/bin/sh\n")
        (tools / tool).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(log), "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    subprocess.run(
        ["bash", str(folder / "recipes" / name)], env=environment | settings, check=True,
        timeout=60,
    )  # fmt: skip
    if not log.exists():
        return []
    found = [line.split("\0")[:-1] for line in log.read_text().splitlines()]
    return [(words[words.index("-m") + 1], words[words.index("-m") + 2 :]) for words in found]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "recipes" / name)], check=True)


def test_one_recipe_starts_all_of_cifar10() -> None:
    text = (ROOT / "recipes" / "cifar10.sh").read_text()
    others = [n for n in RECIPES if n == "cifar10-settings.sh" or n.startswith("cifar10-cpu")]
    parts = [n for n in RECIPES if n.startswith("cifar10-") and n not in others]
    assert len(parts) == 7 and all(f"bash recipes/{name}" in text for name in parts)


@pytest.mark.parametrize("stopped", ["teacher", "trades", ""])
def test_nothing_learns_from_a_network_that_the_limit_stopped(
    stopped: str, tmp_path: Path, data: Path, capfd
) -> None:
    """A run refuses a teacher that has changed since its start. The recipe says why it ends."""
    settings = {"DATA": str(data), "RUNS": "r", "LIMIT": "9", "STEPS": "2", "STOPPED": stopped}
    last = asked("cifar10.sh", tmp_path, **settings)[-1][1]
    expected = f"r/{stopped}" if stopped else "r/table-128"
    assert last[last.index("--out") + 1] == expected
    assert bool(stopped) == (f"stopped the training of {stopped}" in capfd.readouterr().err)


@pytest.mark.parametrize("name", WHOLE)
def test_every_flag_exists(name: str, tmp_path: Path, data: Path) -> None:
    """The recipe runs with its defaults as on a GPU; the number of steps is measured first."""
    settings = {"DATA": str(data), "EXPORT": str(tmp_path / "export"), "MINUTES": "0.5"}
    settings |= {"PROCESSES": "1"}  # so that the recorder sees the program, not its launcher
    commands = asked(name, tmp_path, **settings)
    assert commands
    for module, arguments in commands:
        read(module, arguments)


def read(module: str, arguments: list[str]) -> Any:
    """The configuration that a command line means."""
    try:
        return read_command(module, arguments)[1]
    except ValueError as error:
        raise AssertionError(f"{module} does not take {arguments}: {error}") from None


def test_a_wrong_flag_is_found() -> None:
    with pytest.raises(AssertionError, match=r"training\.train does not take"):
        read("training.train", ["--out", "x", "--network.hight", "3"])


def test_the_number_of_steps_is_what_fits(tmp_path: Path, data: Path) -> None:
    """50 images per second for 2 minutes are 93.75 batches of 64; then this is known."""
    settings = {"DATA": str(data), "MINUTES": "2", "BATCH": "64"}
    for probes in (1, 0):
        commands = asked("cifar10-teacher.sh", tmp_path, **settings)
        assert len(commands) == probes + 1
        assert read(*commands[-1]).steps == 94
        assert read(*commands[-1]).batch_size == 64


def test_the_table_is_about_the_trained_models(tmp_path: Path, data: Path) -> None:
    """Nine defenses under three threats; transfer attacks come from the other classifier."""
    ((module, arguments),) = asked("cifar10-table.sh", tmp_path, DATA=str(data), RUNS="r")
    found = list(read(module, arguments).evaluations())
    assert len(found) == 27
    for name, each in found:
        ordinary, other = ("r/trades", "r/standard") if name == "trades" else (
            "r/standard", "r/standard" if name in ("rdc", "diffusion") else "r/trades")  # fmt: skip
        defense = each.defense
        assert (defense.model, defense.classifier, each.transfer) == ("r/rdc", ordinary, other)
        assert defense.auxiliary == "r/trades" and each.data == str(data)
        purifier = name in ("diffpure", "gdmp", "contrastive", "agdm")
        assert (defense.steps, defense.weight) == (10 if purifier else None, None)


def test_the_rehearsal(tmp_path: Path, data: Path, monkeypatch) -> None:
    """Every command of the CIFAR-10 recipes but the benchmarks', one after the other, on noise."""
    settings = {**TINY, "DATA": str(data), "RUNS": "runs", "EXPORT": "export"}
    commands = []
    for name in REHEARSED:
        commands += asked(f"cifar10-{name}.sh", tmp_path, **settings)
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("training.denoising.save_samples", lambda *_, **__: None)
    AcceleratorState._reset_state(reset_partial_state=True)  # of tests before this one
    for module, arguments in commands:
        main, config = read_command(module, [word for word in arguments if word != "--compile"])
        if isinstance(config, CalibrationConfig):
            few = {"levels": (2,), "sigma_min": (0.5,), "sigma_max": (2.0,)}
            config = replace(config, **few, budget=(0.03,), maximization_sigma=(0.5,))
        if isinstance(config, SweepConfig):
            config = replace(config, check_images=0)
        assert not main(config)
        AcceleratorState._reset_state(reset_partial_state=True)
    table = (tmp_path / "runs" / "table" / "table.md").read_text()
    assert "| rdc" in table and "linf 8/255" in table
    model = RobustDiffusionClassifier.from_pretrained(tmp_path / "export" / "multihead")
    assert model.denoiser.num_classes == 10
    assert np.isfinite(model.config.classifier.temperature)
