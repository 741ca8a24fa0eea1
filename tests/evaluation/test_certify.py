"""`evaluation.certify` on classifiers whose true radii are known, and its bookkeeping."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from evaluation import certify
from evaluation.certification import Certificate, Certification, SmoothedClassifier, SmoothingConfig
from purification import DiffusionPurifier, PurifierConfig
from purification.guidance import ContrastiveGuidance
from rdc import Defense
from tests.support.oracle import two_classes

SIGMA = 0.25


class HalfSpace(nn.Module):
    """Class 1 where the mean of a 1x2x2 image exceeds 1/2; the L2 distance is |sum - 2| / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        score = images.sum((1, 2, 3)) - 2
        return torch.stack([-score, score], 1)


def at_distance(*distances: float) -> Tensor:
    """Gray images at these distances above the boundary (N, 1, 2, 2)."""
    return (0.5 + torch.tensor(distances) / 2).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


IMAGES = at_distance(0.2, 0.25, 0.3, 0.5, 0.8, -0.4)
LABELS = torch.tensor([1, 1, 1, 1, 1, 1])
TRUE = [0.2, 0.25, 0.3, 0.5, 0.8, 0.4]


@pytest.mark.parametrize("method", ["sequential", "fixed"])
def test_no_certificate_exceeds_the_true_radius(method):
    found = certify(HalfSpace(), IMAGES, LABELS, sigma=SIGMA, method=method, samples=400)
    assert [each.selected for each in found.certificates] == [1, 1, 1, 1, 1, 0]
    for each, true in zip(found.certificates, TRUE, strict=True):
        assert each.radius is None or 0 <= each.radius <= true
        assert each.upper is None or each.upper >= true
    assert [each.certified(0.25) for each in found.certificates] == [False] * 3 + [True] * 2 + [
        False
    ]
    # The last image is certified as another class, which counts as wrong.
    assert found.certificates[5].radius is not None
    assert found.certified_accuracy(0.25) == pytest.approx(2 / 6)


def test_functions_and_arrays_are_certified_as_modules_and_tensors():
    options = {"sigma": SIGMA, "samples": 100}
    whole = certify(HalfSpace(), IMAGES, LABELS, **options).certificates
    model = HalfSpace()
    for labels in (LABELS.numpy(), LABELS.tolist()):
        found = certify(lambda x: model(x), IMAGES.numpy(), labels, **options).certificates
        assert [replace(each, seconds=0) for each in found] == [
            replace(each, seconds=0) for each in whole
        ]


def test_data_sets_are_certified_as_tensors():
    expected = certify(HalfSpace(), IMAGES, LABELS, sigma=SIGMA, samples=200)
    found = certify(HalfSpace(), TensorDataset(IMAGES, LABELS), sigma=SIGMA, samples=200)
    assert [each.radius for each in found.certificates] == [
        each.radius for each in expected.certificates
    ]


def test_fixed_certificates_are_those_of_the_procedure():
    each = certify(
        HalfSpace(), at_distance(0.8), torch.tensor([1]), sigma=SIGMA, method="fixed", samples=100
    ).certificates[0]
    assert each == replace(each, hits=100, samples=100, passes=200, upper=None)
    assert each.radius == pytest.approx(SIGMA * 1.500, abs=SIGMA * 5e-4)


def test_the_sequential_test_takes_fewer_samples_far_from_the_radius():
    config = {"sigma": SIGMA, "radii": (SIGMA,), "samples": 5000}
    found = certify(HalfSpace(), at_distance(0.8, 0.4, 0.3, 0.05), torch.ones(4).long(), **config)
    far, near, nearer, unlikely = found.certificates
    assert far.samples < near.samples < nearer.samples
    assert far.certified(SIGMA) and near.certified(SIGMA)
    assert not unlikely.certified(SIGMA) and unlikely.samples < 100
    assert all(
        0 <= each.passes - each.samples - 20 <= max(10, each.samples // 4)
        for each in found.certificates
    )


def test_undecided_where_the_samples_end():
    found = certify(
        HalfSpace(), at_distance(0.25), torch.tensor([1]), sigma=SIGMA, radii=(SIGMA,), samples=90
    )
    assert found.undecided(SIGMA) == 1 and found.certified_accuracy(SIGMA) == 0
    # The samples left could not certify it any more.
    assert found.certificates[0].samples < 90 and not found.certificates[0].certified(0)


class Scripted(nn.Module):
    """Class 0 for the first `count` images, then class 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def forward(self, images: Tensor) -> Tensor:
        classes = [0 if self.left > row else 1 for row in range(len(images))]
        self.left -= len(images)
        return nn.functional.one_hot(torch.tensor(classes), 2).float()


def test_what_selects_the_class_does_not_estimate_its_radius():
    each = certify(
        Scripted(100), IMAGES[:1], LABELS[:1], sigma=SIGMA, method="fixed", samples=200
    ).certificates[0]
    assert (each.selected, each.hits, each.samples, each.radius) == (0, 0, 200, None)
    each = certify(Scripted(20), IMAGES[:1], LABELS[:1], sigma=SIGMA).certificates[0]
    assert (each.selected, each.hits, each.radius) == (0, 0, None)


def test_noise_is_gaussian_unclipped_and_new_for_every_sample():
    model = HalfSpace()
    image = torch.zeros(1, 1, 2, 2)
    certify(model, image, torch.tensor([0]), sigma=SIGMA, method="fixed", samples=2000)
    seen = torch.cat(model.seen[1:]).flatten(1)  # the first call is a look at the model's output
    assert len(seen) == len(seen.unique(dim=0)) == 2100
    assert seen.mean().item() == pytest.approx(0, abs=4 * SIGMA / 8400**0.5)
    assert seen.std().item() == pytest.approx(SIGMA, rel=0.03)
    assert seen.min() < -2 * SIGMA


@pytest.mark.parametrize("method", ["sequential", "fixed"])
def test_certificates_do_not_depend_on_the_batch(method):
    def run(count: int, max_rows: int) -> list[Certificate]:
        found = certify(
            HalfSpace(), IMAGES[:count], LABELS[:count], sigma=SIGMA, method=method, samples=150,
            max_rows=max_rows, radii=(0.0, 0.1),
        )  # fmt: skip
        return [replace(each, seconds=0) for each in found.certificates]

    whole = run(6, 1000)
    assert run(6, 7) == whole
    assert run(2, 64) == whole[:2]
    other = certify(HalfSpace(), IMAGES, LABELS, sigma=SIGMA, method=method, samples=150, seed=1)
    assert [each.hits for each in other.certificates] != [each.hits for each in whole]


def test_an_interrupted_run_continues(tmp_path):
    options = {"sigma": SIGMA, "method": "fixed", "samples": 150, "max_rows": 100}
    total = 0

    def stop(samples: int) -> None:
        nonlocal total
        total += samples
        if total > 700:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify(HalfSpace(), IMAGES, LABELS, out=tmp_path, progress=stop, **options)
    told: list[int] = []
    model = HalfSpace()
    found = certify(model, IMAGES, LABELS, out=tmp_path, progress=told.append, **options)
    expected = certify(HalfSpace(), IMAGES, LABELS, **options)
    assert [replace(each, seconds=0) for each in found.certificates] == [
        replace(each, seconds=0) for each in expected.certificates
    ]
    rows = sum(map(len, model.seen)) - 1
    assert 0 < rows < 6 * 250 and rows % 250 == 0
    assert sum(told) == 6 * 250 and told[0] == 6 * 250 - rows
    again = HalfSpace()
    certify(again, IMAGES, LABELS, out=tmp_path, **options)
    assert sum(map(len, again.seen)) == 1


def test_progress_counts_samples_that_are_not_needed():
    told: list[int] = []
    found = certify(HalfSpace(), IMAGES, LABELS, sigma=SIGMA, progress=told.append)
    assert sum(told) == 6 * 1020
    assert sum(each.passes for each in found.certificates) < 6 * 1020


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 151}, "--samples: 150 -> 151"),
        ({"context": {"levels": 8}}, "--levels: None -> 8"),
        ({"images": IMAGES.flip(0)}, "images and labels: its content has changed"),
    ],
)
def test_a_folder_belongs_to_its_settings(tmp_path, change, message):
    options = {"sigma": SIGMA, "method": "fixed", "samples": 150, "out": tmp_path, "images": IMAGES}
    certify(HalfSpace(), labels=LABELS, **options)
    with pytest.raises(ValueError, match=message):
        certify(HalfSpace(), labels=LABELS, **{**options, **change})


def test_a_folder_belongs_to_its_weights(tmp_path):
    options = {"sigma": SIGMA, "method": "fixed", "samples": 50, "out": tmp_path, "radii": (0.1,)}
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    certify(model, IMAGES, LABELS, **options)
    with torch.no_grad():
        model[1].bias += 1  # type: ignore[operator]
    with pytest.raises(ValueError, match="weights of the model: its content has changed"):
        certify(model, IMAGES, LABELS, **options)


def test_certificates_of_another_version_are_refused_by_their_place(tmp_path):
    options = {"sigma": SIGMA, "method": "fixed", "samples": 50, "out": tmp_path, "radii": (0.1,)}
    certify(HalfSpace(), IMAGES, LABELS, **options)
    with (tmp_path / "records-000.jsonl").open("a") as file:
        file.write('{"image": 0, "draws": 7}\n')
    with pytest.raises(ValueError, match=r"records-000.jsonl, byte \d+: certificate: 'draws'"):
        certify(HalfSpace(), IMAGES, LABELS, **options)


class Process:
    """One of two processes of a run, as far as certify asks; the other one never comes."""

    num_processes = 2
    process_index = 1
    is_main_process = False

    def wait_for_everyone(self) -> None:
        pass


PROCESS: Any = Process()


def test_processes_share_the_images(tmp_path):
    options = {"sigma": SIGMA, "method": "fixed", "samples": 150, "out": tmp_path}
    (tmp_path / ".claims").mkdir()
    for taken in (0, 3):
        (tmp_path / ".claims" / str(taken)).touch()  # by the other process
    found = certify(HalfSpace(), IMAGES, LABELS, accelerator=PROCESS, **options)
    assert [each.image for each in found.certificates] == [1, 2, 4, 5]
    assert (tmp_path / "records-001.jsonl").exists()
    found = certify(HalfSpace(), IMAGES, LABELS, **options)
    assert [each.image for each in found.certificates] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="out=None: several processes"):
        certify(HalfSpace(), IMAGES, LABELS, sigma=SIGMA, accelerator=PROCESS)


def test_a_process_leaves_images_to_the_others(tmp_path):
    """A process claims an eighth of the images at a time, here one."""
    options = {"sigma": SIGMA, "method": "fixed", "samples": 150, "out": tmp_path}
    claims = tmp_path / ".claims"
    claims.mkdir()
    claimed = []

    def look(samples: int) -> None:
        claimed.append(len(list(claims.iterdir())))

    certify(HalfSpace(), IMAGES, LABELS, accelerator=PROCESS, progress=look, **options)
    assert max(claimed[:3]) == 1 and claimed[-1] == 6


class Coupled(HalfSpace):
    batch_coupled = True


def norm_in_training() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2))


def frozen() -> nn.Module:
    return SmoothedClassifier(HalfSpace(), sigma=SIGMA, noise="frozen")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (HalfSpace(), {"samples": 9, "method": "fixed", "radii": (0.0,)}, "too few"),
        (HalfSpace(), {"samples": 12, "radii": (0.0,)}, "too few"),
        (HalfSpace(), {"samples": 100, "radii": (0.4,)}, "too few for the radius 0.4"),
        (Coupled(), {}, "depends on the other images of the batch"),
        (norm_in_training(), {}, r"call model.eval\(\)"),
        (nn.Sequential(nn.Dropout(), HalfSpace()), {}, r"Dropout is in training mode"),
        ("cnn", {}, "model: str; give a torch.nn.Module"),
        (HalfSpace(), {"labels": None}, "labels: none given"),
        (frozen(), {}, "frozen smoothing noise has none"),
        (nn.Identity(), {}, r"they must be \(B, K\)"),
        (HalfSpace(), {"sigma": 0.0}, "sigma=0.0 must be positive"),
        (HalfSpace(), {"alpha": 0.5}, "alpha=0.5 must be between"),
        (HalfSpace(), {"method": "both"}, "method='both' must be one of"),
        (HalfSpace(), {"radii": -0.1}, "radii"),
        (HalfSpace(), {"radii": "large"}, "radii='large': give a number"),
        (HalfSpace(), {"max_rows": 0}, "max_rows=0 must be at least 1"),
        (HalfSpace(), {"labels": torch.tensor([1])}, "labels: shape .1,. and torch.int64"),
        (HalfSpace(), {"labels": torch.ones(6)}, "labels: shape .6,. and torch.float32"),
        (HalfSpace(), {"labels": LABELS + 1}, "labels: up to 2, but the model has 2 classes"),
        (HalfSpace(), {"images": 2 * IMAGES}, r"must lie in \[0, 1\]"),
        (HalfSpace(), {"images": IMAGES[0]}, "images: shape .1, 2, 2. and"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(model, options, message):
    with pytest.raises(ValueError, match=message):
        certify(model, **{"images": IMAGES, "labels": LABELS, "sigma": SIGMA, **options})


def test_the_reason_names_what_the_samples_can_certify():
    with pytest.raises(ValueError, match=r"they certify 0\.3751 at alpha=0\.001"):
        SmoothingConfig(sigma=SIGMA, samples=100, method="fixed", radii=(0.4,))
    assert SmoothingConfig(sigma=SIGMA, samples=100, method="fixed").levels == (0, 0.125, 0.25)


def test_nan_in_the_logits_is_an_error():
    class Broken(HalfSpace):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / (len(images) == 1)

    with pytest.raises(FloatingPointError, match="NaN in its logits, or infinity"):
        certify(Broken(), IMAGES, LABELS, sigma=SIGMA)
    with pytest.raises(FloatingPointError, match="NaN in its logits, or infinity"):
        SmoothedClassifier(Broken(), sigma=SIGMA, samples=101).predict(IMAGES[:1])


def made(radius: float | None, *, selected: int = 1, upper: float | None = None) -> Certificate:
    return Certificate(0, 1, selected, radius, upper, 10, 20, 40, 0.5)


def test_certified_accuracy_and_table():
    config = SmoothingConfig(sigma=SIGMA, radii=(0.0, 0.25))
    rows = [
        made(0.25, upper=0.25),
        made(0.1, upper=0.3),
        made(None, upper=0.2),
        made(0.9, selected=0),
    ]
    found = Certification(config, rows)
    assert [found.certified_accuracy(r) for r in (0.0, 0.1, 0.25, 0.3)] == [0.5, 0.5, 0.25, 0]
    assert (found.abstained, found.undecided(0.25), found.undecided(0.0)) == (0.25, 0.25, 0.25)
    assert found.interval(0.25) == pytest.approx((0.0063, 0.8059), abs=1e-4)
    head, _, zero, quarter = found.table().splitlines()
    assert head.split()[1:4:2] == ["radius", "certified"]
    assert [cell.strip() for cell in quarter.split("|")[1:-1]] == [
        "0.25", "25.0 [1, 81]", "25.0", "50.0", "25.0", "sequential 1000", "0.001", "40", "0.50"
    ]  # fmt: skip
    assert zero.split("|")[1].strip() == "0"


@pytest.mark.parametrize(("distance", "expected"), [(0.5, 1), (-0.5, 0), (0.0, None)])
def test_prediction_of_the_smoothed_classifier(distance, expected):
    smoothed = SmoothedClassifier(HalfSpace(), sigma=SIGMA, samples=250)
    assert smoothed.predict(at_distance(distance, distance)) == [expected, expected]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0])
def test_predictions_without_a_guarantee_are_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be between 0 and 1"):
        SmoothedClassifier(HalfSpace(), sigma=SIGMA, alpha=alpha)


def test_too_few_samples_to_ever_decide_are_refused():
    few = SmoothedClassifier(HalfSpace(), sigma=SIGMA, samples=10)
    with pytest.raises(ValueError, match=r"samples=10 are too few for alpha=0.001.*samples=11"):
        few.predict(at_distance(1.0))
    enough = SmoothedClassifier(HalfSpace(), sigma=SIGMA, samples=11)
    assert enough.predict(at_distance(1.0)) == [1]


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (HalfSpace(), 2 * IMAGES, r"must lie in \[0, 1\]"),
        (HalfSpace(), IMAGES[0], "images: shape .1, 2, 2. and"),
        (nn.Identity(), IMAGES, r"they must be \(B, K\)"),
        (Coupled(), IMAGES, "depends on the other images of the batch"),
    ],
)  # fmt: skip
def test_predictions_without_a_meaning_are_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        SmoothedClassifier(model, sigma=SIGMA).predict(images)


def test_predictions_of_a_model_in_training_mode_are_refused():
    model = norm_in_training()
    smoothed = SmoothedClassifier(model, sigma=SIGMA, samples=20)
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        smoothed.predict(IMAGES)
    assert int(model[0].num_batches_tracked) == 0  # type: ignore[index]
    smoothed.eval().predict(IMAGES)


def test_smoothed_classifier_is_differentiable_and_refuses_frozen_predictions():
    smoothed = SmoothedClassifier(HalfSpace(), sigma=SIGMA, samples=50, noise="frozen")
    images = IMAGES.clone().requires_grad_()
    logits = smoothed(images)
    assert logits.shape == (6, 2) and torch.equal(logits, smoothed(images))
    assert torch.allclose(logits.exp().sum(1), torch.ones(6))
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), images)
    assert (slope > 0).all()
    with pytest.raises(RuntimeError, match="make the SmoothedClassifier with noise='fresh'"):
        smoothed.predict(IMAGES)


def test_the_function_and_not_the_program():
    import evaluation

    assert evaluation.certify is certify and callable(certify)


def test_defenses_that_are_coupled_inside_are_refused():
    guide = ContrastiveGuidance(HalfSpace(), negatives="batch")
    purifier = DiffusionPurifier(two_classes(), PurifierConfig(steps=1), guidance=[(1.0, guide)])
    with pytest.raises(ValueError, match="depends on the other images"):
        certify(Defense(purifier, HalfSpace()), IMAGES, LABELS, sigma=SIGMA)
