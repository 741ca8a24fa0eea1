"""`python -m rdc convert`: what it prints and writes, and what it refuses; classifiers."""

import hashlib
import pickle
import resource
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdc import Denoiser, ImageClassifier
from rdc.commands.main import main
from rdc.converters import ClassifierFacts, convert
from rdc.converters.classifiers import convert as convert_classifier
from rdc.converters.conversion import build
from rdc.converters.weights import plain_tensors
from rdc.hub.model_card import is_generated
from tests.support.published_classifiers import DMWideResNet, ImageNormalizer, ResNet, WideResNet
from tests.support.published_edm import EDMPrecond, pickled
from tests.support.published_vp import DDPMpp, checkpoint

SONG = {
    "model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
    "attn_resolutions": [4], "img_resolution": 8, "img_channels": 3, "label_dim": 2,
}  # fmt: skip
AS_IT_IS = ("--mean", "0", "--std", "1")


def run(*args: object) -> int:
    return main([str(arg) for arg in ("convert", *args)])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def edm_file(tmp_path: Path) -> Path:
    path = tmp_path / "edm-tiny.pkl"
    path.write_bytes(pickled(EDMPrecond(**SONG)))
    return path


def refused(capsys: Any, *args: object) -> str:
    """The error of a command that must fail and write nothing."""
    out = Path(str(args[args.index("--out") + 1]))
    assert run(*args) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert not out.exists()
    return error.removeprefix("error: ")


# --- what it says and writes ---


def test_it_says_what_it_found(edm_file: Path, tmp_path: Path, capsys) -> None:
    assert run(edm_file, "--format", "edm", "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    printed = {line[:14].strip(): line[14:] for line in lines[:8]}
    denoiser = Denoiser.from_pretrained(tmp_path / "out")
    assert printed == {
        "source": "edm-tiny.pkl",
        "sha256": hashlib.sha256(edm_file.read_bytes()).hexdigest(),
        "published as": "EDM SongUNet",
        "network": "denoiser, ddpmpp, edm",
        "images": "3x8x8, 2 classes",
        "parameters": f"{sum(weights.numel() for weights in denoiser.parameters()):,}",
        "license": "cc-by-nc-sa-4.0",
        "written to": str(tmp_path / "out"),
    }
    assert lines[8].startswith("NVIDIA's EDM weights are CC BY-NC-SA 4.0: no commercial use")


def test_the_card_says_where_it_is_from(edm_file: Path, tmp_path: Path) -> None:
    conversion = convert(edm_file, "edm", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert is_generated(card)
    assert card.startswith("---\nlibrary_name: rdc\nlicense: cc-by-nc-sa-4.0\n")
    assert f"- sha256: {conversion.sha256}\n" in card
    assert "| parameters | " in card and "## Accuracy\n\nClean accuracy: not measured." in card
    assert "no commercial use" in card
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md"}


def test_it_costs_no_random_numbers(edm_file: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    convert(edm_file, "edm", tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_format_must_be_given(edm_file: Path, tmp_path: Path, capsys) -> None:
    assert run(edm_file, "--out", tmp_path / "out") == 2
    assert "--format" in capsys.readouterr().err


# --- what it refuses ---


def test_folders_in_use_are_refused(edm_file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert run(edm_file, "--format", "edm", "--out", tmp_path / "out") == 2
    assert "must be a new or an empty folder" in capsys.readouterr().err
    (tmp_path / "out" / "mine").unlink()
    assert run(edm_file, "--format", "edm", "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("format", ["score-sde", "guided-diffusion", "classifier"])
def test_files_of_another_format_are_refused(format: str, edm_file, tmp_path, capsys) -> None:
    facts = ("--architecture", "wrn-10-1", *AS_IT_IS) if format == "classifier" else ()
    error = refused(capsys, edm_file, "--format", format, "--out", tmp_path / "out", *facts)
    assert error.startswith(f"source: {edm_file} is not of the format {format}: ")


def state() -> dict[str, Tensor]:
    return DDPMpp(8, 1).state_dict()


OTHER: dict[str, tuple[Callable[[], Any], str, str]] = {
    "state dictionary as edm": (state, "edm", "is a state dictionary, but not of an EDM network"),
    "list as edm": (lambda: [1], "edm", "'ema' must be an EDMPrecond"),
    "number": (lambda: 3, "guided-diffusion", "an? int stands in place of a state dictionary"),
    "empty": (dict, "guided-diffusion", "stands in place of a state dictionary"),
    "not tensors": (lambda: {"a": 1}, "score-sde", "'a' is a int, not a tensor"),
    "wrn as score-sde": (
        lambda: WideResNet(10, 1, 3).state_dict(), "score-sde", "has 0 residual blocks .* has 76"),
    "wrn as guided-diffusion": (
        lambda: WideResNet(10, 1, 3).state_dict(), "guided-diffusion",
        r"missing: input_blocks\.0\.0\.bias, .* \(566 in all\); unexpected: block1"),
    "ddpmpp as guided-diffusion": (state, "guided-diffusion", r"unexpected: all_modules\.0\.bias"),
    "missing": (
        lambda: {k: v for k, v in state().items() if k != "all_modules.7.Conv_0.bias"},
        "score-sde", r"missing: all_modules\.7\.Conv_0\.bias \(1 in all\)$"),
    "extra": (
        lambda: state() | {"all_modules.99.weight": torch.zeros(1)}, "score-sde",
        r"unexpected: all_modules\.99\.weight \(1 in all\)$"),
    "shape": (
        lambda: state() | {"all_modules.3.Conv_0.weight": torch.zeros(8, 8, 5, 5)}, "score-sde",
        r"wrongly shaped: all_modules\.3\.Conv_0\.weight \(8, 8, 5, 5\) for \(8, 8, 3, 3\) \(1 in"),
    "dimensions": (
        lambda: state() | {"all_modules.0.weight": torch.zeros(32, 8, 1)}, "score-sde",
        "has 12 residual|has 20 residual"),
    "nan": (
        lambda: state() | {"all_modules.2.bias": torch.full((8,), torch.nan)}, "score-sde",
        r"not finite: all_modules\.2\.bias"),
    "averages missing": (
        lambda: averages(lambda shadow: shadow[:-1]), "score-sde",
        r"ema\['shadow_params'\] must list \d+ tensors, not \d+"),
    "averages of another kind": (
        lambda: averages(lambda shadow: dict(enumerate(shadow))), "score-sde", "tensors, not dict"),
    "averages in another order": (
        lambda: averages(lambda shadow: shadow[::-1]), "score-sde", "wrongly shaped: all_modules"),
    "names in another order": (
        lambda: reordered(), "score-sde", "not in the order of DDPM..'s modules"),
}  # fmt: skip


def averages(change: Callable[[list], Any]) -> dict[str, Any]:
    document = checkpoint(DDPMpp(8, 1), DDPMpp(8, 1))
    document["ema"]["shadow_params"] = change(document["ema"]["shadow_params"])
    return document


def reordered() -> dict[str, Any]:
    document = checkpoint(DDPMpp(8, 1), DDPMpp(8, 1))
    return document | {"model": dict(reversed(document["model"].items()))}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_other_contents_are_refused(name: str, tmp_path: Path, capsys) -> None:
    make, format, message = OTHER[name]
    torch.save(make(), tmp_path / "file.pt")
    error = refused(capsys, tmp_path / "file.pt", "--format", format, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=rf"file\.pt is not of the format {format}: .*{message}"):
        raise ValueError(error.strip())


class iDDPMPrecond(EDMPrecond):
    """EDM's baseline for ImageNet, which is preconditioned otherwise."""


def edited(change: Callable[[Any], Any]) -> EDMPrecond:
    network = EDMPrecond(**SONG)
    change(network.model)
    return network


EDM_OTHER: dict[str, tuple[Callable[[], EDMPrecond], str]] = {
    "baseline": (lambda: iDDPMPrecond(**SONG), "not a iDDPMPrecond, whose noise levels are those"),
    "mixture": (
        lambda: EDMPrecond(**SONG, embedding_type="fourier"), "neither DDPM.. nor NCSN.."),
    "argument": (
        lambda: edited(lambda net: net._init_kwargs.update(new=1)), r"other arguments .*\['new'\]"),
    "type": (
        lambda: edited(lambda net: net._init_kwargs.update(num_blocks="4")),
        r"other arguments than EDM's: \['num_blocks'\]"),
    "no argument": (
        lambda: edited(lambda net: net._init_kwargs.pop("img_resolution")),
        r"other arguments than EDM's: \['img_resolution'\]"),
    "positional": (
        lambda: edited(lambda net: net.__setattr__("_init_args", (3,))),
        "does not say what it was made with"),
    "embedding": (
        lambda: edited(lambda net: net._init_kwargs.update(channel_mult_emb=2)), "of other than 4"),
    "size": (
        lambda: edited(lambda net: net._init_kwargs.update(img_resolution=4)), "image_size=4 must"),
    "other width": (
        lambda: edited(lambda net: net._init_kwargs.update(model_channels=16)), "wrongly shaped"),
    "missing": (
        lambda: edited(lambda net: net._parameters.clear() or net._modules.pop("map_layer0")),
        r"missing: map_layer0\.bias, map_layer0\.weight \(2 in all\)"),
    "extra": (
        lambda: edited(lambda net: net.register_parameter("x", nn.Parameter(torch.zeros(1)))),
        r"unexpected: x \(1 in all\)"),
    "filter": (
        lambda: edited(lambda net: net.enc["4x4_down"].conv0.resample_filter.mul_(2)),
        "another filter than that of its architecture"),
    "sigma_data": (lambda: EDMPrecond(**SONG, sigma_data="x"), "sigma_data='x' is not a number"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EDM_OTHER)
def test_other_edm_networks_are_refused(name: str, tmp_path: Path, capsys) -> None:
    make, message = EDM_OTHER[name]
    (tmp_path / "a.pkl").write_bytes(pickled(make()))
    error = refused(capsys, tmp_path / "a.pkl", "--format", "edm", "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=rf"a\.pkl is not of the format edm: .*{message}"):
        raise ValueError(error.strip())


def test_modules_inside_themselves_are_refused(tmp_path: Path, capsys) -> None:
    network = EDMPrecond(**SONG)
    network.model.enc._modules["inside"] = network.model.enc
    (tmp_path / "a.pkl").write_bytes(pickled(network))
    error = refused(capsys, tmp_path / "a.pkl", "--format", "edm", "--out", tmp_path / "out")
    assert "a.pkl is refused" in error


def test_odd_tensors_are_refused() -> None:
    nested = torch.nested.as_nested_tensor([torch.ones(1)], layout=torch.jagged)
    for odd in (torch.eye(2).to_sparse(), torch.zeros(2, device="meta"), nested):
        with pytest.raises(ValueError, match=r"a is not an ordinary tensor but (torch\.|nested)"):
            plain_tensors({"a": odd})


@pytest.mark.parametrize("content", [b"", b"cos\nsystem\n(S'touch executed'\ntR."])
def test_malicious_and_empty_files_are_errors(
    content: bytes, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(content)
    error = refused(capsys, tmp_path / "a.pkl", "--format", "edm", "--out", tmp_path / "out")
    assert error.startswith(f"source: {tmp_path / 'a.pkl'} is refused: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_facts_of_classifiers_are_for_classifiers(edm_file: Path, tmp_path: Path, capsys) -> None:
    given = (edm_file, "--out", tmp_path / "out", "--format")
    error = refused(capsys, *given, "edm", "--architecture", "wrn-28-10", *AS_IT_IS)
    assert error.startswith("--architecture='wrn-28-10' must be None for format='edm': ")
    assert "--mean=(0.0,) must be () for format='edm'" in error
    with pytest.raises(ValueError, match=r"^format='edm': architecture, mean and std are for"):
        convert(edm_file, "edm", tmp_path / "out", classifier=ClassifierFacts("wrn-28-10"))
    for facts in ((), AS_IT_IS):
        error = refused(capsys, *given, "classifier", *facts)
        assert error.startswith("--architecture is missing")
    with pytest.raises(ValueError, match="format='pickle' must be one of"):
        convert(edm_file, "pickle", tmp_path / "out")  # type: ignore[arg-type]


# --- classifiers ---

CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "wrn-10-2": lambda: WideResNet(10, 2, 5),
    "wrn-16-1": lambda: WideResNet(16, 1, 5, unused=True),
    "resnet26": lambda: ResNet((2, 2, 2, 2), 5),
}


def shaken(network: nn.Module) -> nn.Module:
    """The network with random running statistics and normalizations."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.2)  # type: ignore[union-attr]
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_classifiers(name: str, tmp_path: Path, capsys) -> None:
    network = shaken(CLASSIFIERS[name]())
    state = {f"module.0.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {}}, tmp_path / "weights.pt")
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    facts = ("--architecture", name, "--mean", *mean, "--std", *std)
    out = ("--out", tmp_path / "out")
    assert run(tmp_path / "weights.pt", "--format", "classifier", *out, *facts) == 0
    assert f"classifier, {name}" in capsys.readouterr().out
    images = torch.rand(2, 3, 32, 32)
    normalized = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = network(normalized)
    loaded = ImageClassifier.from_pretrained(tmp_path / "out")
    assert expected.std() > 0.01
    torch.testing.assert_close(loaded(images), expected, rtol=1e-6, atol=2e-6)

    published = convert_classifier(network.double().state_dict(), ClassifierFacts(name, (0,), (1,)))
    precise = build(published).double()
    precise.load_state_dict(published.weights)
    images = images.double()
    torch.testing.assert_close(precise(images), network(images), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_timms_own_names(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("resnet18", num_classes=4).eval()
    facts = ClassifierFacts("resnet18", (0.5,), (0.5,), image_size=64, stem="original")
    classifier = build(convert_classifier(network.state_dict(), facts))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(classifier(images), network(2 * images - 1))


def test_counts_of_batches_may_be_missing() -> None:
    state = WideResNet(10, 1, 3).state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("batches_tracked")}
    facts = ClassifierFacts("wrn-10-1", (0,), (1,))
    assert len(old) < len(state)
    weights = convert_classifier(old, facts).weights
    assert weights.keys() == convert_classifier(state, facts).weights.keys()


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("wrn-28-10", r"missing: groups\.0\.0\.shortcut\.weight, groups\.0\.1"),
        ("wrn-10-2", r"missing: groups\.0\.0\.shortcut\.weight \(1 in all\)"),
        # timm takes seconds to import.
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [
            ("resnet18", r"missing: .*layer1\.0\..*; unexpected: block1\."),
            ("resnet1", r"architecture='resnet1' must be wrn-<depth>-<widen>, .* or timm's"),
            ("deit_tiny_distilled_patch16_224", "has more than one first or last layer"),
        ]),
    ],
)  # fmt: skip
def test_other_architectures_are_refused(architecture: str, message: str) -> None:
    facts = ClassifierFacts(architecture, (0,), (1,))
    with pytest.raises(ValueError, match=message):
        convert_classifier(WideResNet(10, 1, 3).state_dict(), facts)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"model": {"a": torch.ones(1)}, "best": {"a": torch.ones(1)}},
            r"has the state dictionaries \['model', 'best'\]; choose one with --entry NAME",
        ),
        ({"epoch": 3}, r"has none among \['epoch'\]"),
        ([1], r"has none among \[\]"),
        ({"a": torch.ones(1), "b": 3}, "'b' is a int, not a tensor"),
        ({"model.mu": torch.ones(1)}, r"has no layers stem\.weight and head\.weight"),
    ],
)
def test_checkpoints_without_one_classifier_are_refused(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_classifier(document, ClassifierFacts("wrn-10-1", (0,), (1,)))


@pytest.mark.parametrize("names", [("mu", "sigma"), ("mean", "std")])
@pytest.mark.parametrize("prefixes", [("", ""), ("module.", "module."), ("normalize.", "model.")])
def test_normalization_buffers_must_be_the_given_numbers(names: tuple, prefixes: tuple) -> None:
    """The buffers are those of RobustBench's `normalize_model` and of Wong et al.'s networks."""
    numbers = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    weights = WideResNet(10, 1, 3).state_dict()
    buffers = {
        prefixes[0] + name: torch.tensor(values).view(1, 3, 1, 1)
        for name, values in zip(names, numbers, strict=True)
    }
    state = buffers | {prefixes[1] + name: tensor for name, tensor in weights.items()}
    published = convert_classifier(state, ClassifierFacts("wrn-10-1", *numbers))
    plain = convert_classifier(weights, ClassifierFacts("wrn-10-1", *numbers))
    assert published.weights.keys() == plain.weights.keys()
    assert all(torch.equal(published.weights[name], plain.weights[name]) for name in plain.weights)
    found = convert_classifier(state, ClassifierFacts("wrn-10-1")).config
    assert torch.tensor([found.mean, found.std]).equal(torch.tensor(numbers))  # type: ignore
    with pytest.raises(ValueError, match=r"buffers are 0\.4914 0\.4822 .*leave --mean and"):
        convert_classifier(state, ClassifierFacts("wrn-10-1", (0,), (1,)))


@pytest.mark.parametrize("names", [("model", "ema"), ("state_dict", "ema_state_dict")])
def test_averages_beside_the_weights_are_taken(names: tuple, tmp_path: Path, capsys) -> None:
    states = [WideResNet(10, 1, 3).state_dict() for _ in names]
    torch.save(dict(zip(names, states, strict=True)), tmp_path / "a.pt")
    facts = ("--architecture", "wrn-10-1", *AS_IT_IS)
    for index, choice in ((1, ()), (0, ("--entry", names[0]))):
        out = tmp_path / str(index)
        command = (tmp_path / "a.pt", "--format", "classifier", "--out", out, *facts, *choice)
        assert run(*command) == 0
        assert f"are those of the entry '{names[index]}'" in capsys.readouterr().out
        loaded = ImageClassifier.from_pretrained(out).state_dict()
        assert torch.equal(loaded["network.stem.weight"], states[index]["conv1.weight"])


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def assert_same_logits(
    network: nn.Module, state: Any, facts: ClassifierFacts, tmp_path: Path, *, size: int = 32
) -> None:
    """Logits of images in [0, 1], through a file in float32 and directly in float64."""
    torch.save(state, tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", "classifier", tmp_path / "out", classifier=facts)
    loaded, images = ImageClassifier.from_pretrained(tmp_path / "out"), torch.rand(2, 3, size, size)
    expected = network(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(loaded(images), expected, rtol=1e-6, atol=2e-6)
    precise, images = loaded.double(), images.double()
    torch.testing.assert_close(precise(images), network.double()(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stored", [False, True])
@torch.no_grad()
def test_deepminds_wide_resnets(stored: bool, tmp_path: Path) -> None:
    """Saved as RobustBench's files, with the normalization inside, and as DiffPure's, without."""
    network = shaken(DMWideResNet(16, 1, 5, stored=stored))
    state: Any = network.state_dict()
    if not stored:
        renamed = {f"module.0.{name}": tensor for name, tensor in state.items()}
        state = {"model_state_dict": renamed, "epoch": 3}
    facts = ClassifierFacts("dm-wrn-16-1")
    if not stored:
        facts = ClassifierFacts("dm-wrn-16-1", MEAN, STD)
    assert_same_logits(network, state, facts, tmp_path)


@pytest.mark.parametrize("names", [("normalize", "model"), ("0", "1")])
@torch.no_grad()
def test_normalized_models_need_no_mean(names: tuple[str, str], tmp_path: Path) -> None:
    """The numbers are found in RobustBench's form and in a `nn.Sequential`; 1/3 to all digits."""
    inner = shaken(WideResNet(10, 1, 5))
    network = nn.Sequential(
        OrderedDict(zip(names, (ImageNormalizer((1 / 3, 0.48, 0.45), STD), inner), strict=True))
    )
    assert_same_logits(network, network.state_dict(), ClassifierFacts("wrn-10-1"), tmp_path)


def test_the_two_wide_resnets_are_told_apart() -> None:
    deepmind, plain = DMWideResNet(10, 1, 3).state_dict(), WideResNet(10, 1, 3).state_dict()
    with pytest.raises(ValueError, match=r"DMWideResNet.*give --architecture dm-wrn-<depth>-"):
        convert_classifier(deepmind, ClassifierFacts("wrn-10-1"))
    with pytest.raises(ValueError, match=r"it is xternalz's wide ResNet.*--architecture wrn-<dep"):
        convert_classifier(plain, ClassifierFacts("dm-wrn-10-1", (0,), (1,)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64])
def test_normalization_of_other_types_is_refused(dtype: torch.dtype) -> None:
    state = WideResNet(10, 1, 3).state_dict()
    state |= {"mean": torch.zeros(3, 1, 1, dtype=dtype), "std": torch.ones(3, 1, 1)}
    with pytest.raises(ValueError, match=rf"mean {dtype} and std torch\.float32 must be floating"):
        convert_classifier(state, ClassifierFacts("wrn-10-1"))


def test_errors_stay_short_whatever_the_names() -> None:
    state = WideResNet(10, 1, 3).state_dict() | {"x" * 10**6: torch.ones(1)}
    with pytest.raises(ValueError, match="unexpected: x") as error:
        convert_classifier(state, ClassifierFacts("wrn-10-1", (0,), (1,)))
    assert len(str(error.value)) < 1000


def test_normalization_that_nobody_names_is_asked_for() -> None:
    state = WideResNet(10, 1, 3).state_dict()
    with pytest.raises(ValueError, match=r"no buffers with the mean .*: give --mean and --std"):
        convert_classifier(state, ClassifierFacts("wrn-10-1"))
    with pytest.raises(ValueError, match="mean and std belong together"):
        convert_classifier(state, ClassifierFacts("wrn-10-1", (0,)))


WRONG_TYPES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "complex": (lambda w: torch.complex(w, w), r"type: stem\.weight torch\.complex64 for torch\.f"),
    "bool": (lambda w: w > 0, r"of another type: stem\.weight torch\.bool for torch\.float32"),
    "integer": (lambda w: w.long(), r"another type: stem\.weight torch\.int64 for torch\.float32"),
    "float8": (lambda w: w.to(torch.float8_e4m3fn), r"stem\.weight torch\.float8_e4m3fn"),
    "overflow": (lambda w: w.double() + 1e300, r"of float64 beyond float32: stem\.weight \(1 in"),
    "rounded": (lambda w: w.double() + 1e-12, r"of float64 beyond float32: stem\.weight \(1 in"),
    "expanded": (lambda w: torch.ones(1).expand(w.shape), r"conv1\.weight of shape \(16, 3, 3"),
    "classes": (lambda w: w[:1].expand(10**9, 3, 3, 3), r"shape \(1000000000, 3, 3, 3\) repeats"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_weights_of_other_types_are_refused_by_name(name: str, tmp_path: Path) -> None:
    make, message = WRONG_TYPES[name]
    state = WideResNet(10, 1, 3).state_dict()
    torch.save(state | {"conv1.weight": make(state["conv1.weight"])}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt is .*{message}"):
        convert(
            tmp_path / "a.pt", "classifier", tmp_path / "out",
            classifier=ClassifierFacts("wrn-10-1", (0,), (1,)),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_floating_types_convert_exactly(dtype: torch.dtype) -> None:
    state = {
        name: tensor.to(torch.float16).to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in WideResNet(10, 1, 3).state_dict().items()
    }
    classifier = build(convert_classifier(state, ClassifierFacts("wrn-10-1", (0,), (1,))))
    assert torch.equal(
        classifier.state_dict()["network.stem.weight"], state["conv1.weight"].float()
    )


def test_classifiers_are_compared_before_memory_is_taken() -> None:
    """The last layer claims classes for a network of gigabytes; the others are small."""
    state = WideResNet(10, 1, 3).state_dict()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"wrongly shaped|missing"):
        convert_classifier(
            state | {"fc.weight": torch.zeros(()).expand(100_000, 64)},
            ClassifierFacts("wrn-10-999", (0,), (1,)),
        )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_normalizations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean=\(0, 0\) must be in \[0, 1\]: one for all chann"):
        convert_classifier(
            WideResNet(10, 1, 3).state_dict(), ClassifierFacts("wrn-10-1", (0, 0), (1,))
        )


def test_pickled_state_dictionaries_are_read(tmp_path: Path) -> None:
    """The file is written by pickle itself, not by torch.save."""
    network = WideResNet(10, 1, 3)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(network.state_dict()))
    facts = ClassifierFacts("wrn-10-1", (0,), (1,))
    conversion = convert(tmp_path / "a.pkl", "classifier", tmp_path / "out", classifier=facts)
    size = sum(weights.numel() for weights in network.parameters())
    assert conversion.facts["parameters"] == f"{size:,}"
