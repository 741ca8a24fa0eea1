"""The cache gives what decoding gives, or nothing: never old, half or damaged pixels."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from rdc.data import Shape, cache, decode, load
from rdc.data.folder import read_folder
from tests.support.children import load_and_die
from tests.support.pictures import noise, save, tree

SEEDS = [seed for turn in range(5) for seed in (turn, 5 + turn)]  # the classes take turns
EXPECTED = torch.from_numpy(np.stack([noise(seed) for seed in SEEDS])).permute(0, 3, 1, 2)


def load_test(root: Path, shape: Shape | None = None) -> Tensor:
    resize = shape is not None
    return load(root, "test", shape=shape, resize=resize, cache=root.parent / "cache").pixels


def kept(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten images and no cache yet."""
    return tree(tmp_path / "data", 5, ("test",))


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded."""
    names: list[str] = []
    decode_one = decode.decode

    def counted(name: str, *arguments: Any) -> np.ndarray:
        names.append(name)
        return decode_one(name, *arguments)

    monkeypatch.setattr(decode, "decode", counted)
    return names


def test_the_second_load_decodes_nothing(root: Path, decoding: list[str]) -> None:
    assert torch.equal(load_test(root), EXPECTED)
    (path,) = kept(root)
    before = path.stat()
    assert (len(decoding), path.suffix) == (10, ".npy")
    assert torch.equal(load_test(root), EXPECTED)
    assert (len(decoding), path.stat().st_mtime_ns) == (10, before.st_mtime_ns)


def test_a_copy_of_the_folder_has_the_same_cache(root: Path, decoding: list[str]) -> None:
    load_test(root)
    assert torch.equal(load_test(root.rename(root.with_name("moved"))), EXPECTED)
    assert len(decoding) == 10


def test_the_pixels_are_mapped_and_private(root: Path) -> None:
    """Changing the pixels changes a private copy only."""
    load_test(root).zero_()
    assert torch.equal(load_test(root), EXPECTED)
    encoded = read_folder(root, "test")
    assert isinstance(cache.cached_pixels(encoded, None, root.parent / "cache"), np.memmap)


def test_the_default_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: root.parent)
    load(root, "test")
    assert [path.suffix for path in (root.parent / ".cache" / "rdc").iterdir()] == [".npy"]


def test_renamed_images_are_decoded_again(root: Path, decoding: list[str]) -> None:
    """Even where their order stays, a cache is that of the named files."""
    load_test(root)
    (root / "test/dog/4.png").rename(root / "test/dog/5.png")
    assert torch.equal(load_test(root), EXPECTED)
    assert (len(decoding), len(kept(root))) == (20, 2)


def rename(root: Path) -> None:
    (root / "test/cat/0.png").rename(root / "test/cat/7.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "another image": lambda root: save(root, {"test/cat/0.png": noise(99)}),
    "one more image": lambda root: save(root, {"test/cat/5.png": noise(99)}),
    "one image less": lambda root: (root / "test/cat/0.png").unlink(),
    "another order": rename,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_folder_is_decoded_again(name: str, root: Path) -> None:
    assert torch.equal(load_test(root), EXPECTED)
    CHANGES[name](root)
    first = load_test(root)
    assert not torch.equal(first, EXPECTED)
    assert len(kept(root)) == 2
    for path in kept(root):
        path.unlink()
    assert torch.equal(load_test(root), first)


def test_every_way_to_decode_has_its_own_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [None, (3, 6, 4), (1, 6, 4), (3, 4, 6), (3, 2, 2)]
    for count, shape in enumerate(shapes, start=1):
        assert load_test(root, shape).shape[1:] == (shape or (3, 6, 4))
        assert len(kept(root)) == count
    monkeypatch.setattr(PIL, "__version__", "another")
    assert torch.equal(load_test(root), EXPECTED)
    assert len(kept(root)) == 6


def archive() -> bytes:
    buffer = BytesIO()
    np.savez(buffer, PIXELS)
    return buffer.getvalue()


def npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


PIXELS = EXPECTED.numpy().copy()
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "not an array": lambda path: path.write_bytes(b"PK\x03\x04 and so on"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "only a header": lambda path: path.write_bytes(path.read_bytes()[:128]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "fewer images": lambda path: npy(path, PIXELS[:9]),
    "fewer axes": lambda path: npy(path, PIXELS.reshape(10, 72)),
    "one number": lambda path: npy(path, np.uint8(3)),  # type: ignore[arg-type]
    "another shape": lambda path: npy(path, PIXELS.reshape(10, 3, 4, 6)),
    "another type": lambda path: npy(path, PIXELS.astype(np.int8)),
    "another order": lambda path: npy(path, np.asfortranarray(PIXELS)),
    "archive": lambda path: path.write_bytes(archive()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_replaced(name: str, root: Path, decoding: list[str]) -> None:
    shape = (3, 6, 4)
    load_test(root, shape)
    (path,) = kept(root)
    DAMAGES[name](path)
    assert torch.equal(load_test(root, shape), EXPECTED)
    assert (len(decoding), kept(root)) == (20, [path])
    assert torch.equal(load_test(root, shape), EXPECTED)
    assert len(decoding) == 20


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    root = tree(tmp_path_factory.mktemp("damaged") / "data", 5, ("test",))
    load_test(root)
    return root, kept(root)[0].read_bytes()


@settings(max_examples=30, deadline=None)
@given(position=st.integers(0, 127), value=st.integers(0, 255))
def test_no_damaged_header_is_trusted(
    damaged: tuple[Path, bytes], position: int, value: int
) -> None:
    root, content = damaged
    (path,) = kept(root)
    path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
    assert torch.equal(load_test(root), EXPECTED)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_the_pixels_in_memory(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, name, full)
    message = r"^cache: cannot keep .* in .*cache: .*No space left .* give a writable folder"
    with pytest.warns(UserWarning, match=message) as caught:
        assert torch.equal(load_test(root), EXPECTED)
    assert [warning.filename for warning in caught] == [__file__]
    assert kept(root) == []


def test_a_cache_that_cannot_be_made_leaves_the_pixels_in_memory(root: Path) -> None:
    """A file where its folder should be: permissions do not stop root, who may run the tests."""
    (root.parent / "cache").touch()
    with pytest.warns(UserWarning, match=r"^cache: cannot keep the decoded images in .*cache: "):
        assert torch.equal(load_test(root, (3, 6, 4)), EXPECTED)
    assert (root.parent / "cache").read_bytes() == b""


def test_a_folder_in_its_place_leaves_the_pixels_in_memory(root: Path) -> None:
    load_test(root)
    (path,) = kept(root)
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match=r"^cache: cannot keep"):
        assert torch.equal(load_test(root), EXPECTED)


def test_a_bad_image_leaves_nothing(root: Path) -> None:
    save(root, {"test/dog/3.png": b"no"})
    with pytest.raises(ValueError, match=r"test/dog/3\.png is not a readable image"):
        load_test(root)
    assert kept(root) == []


def test_two_at_once(root: Path, decoding: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither puts its file in place before both have decoded."""
    barrier, replace = threading.Barrier(2, timeout=30), os.replace

    def replace_together(*paths: Path) -> None:
        barrier.wait()
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_together)
    with ThreadPoolExecutor(2) as pool:
        for pixels in pool.map(load_test, [root, root]):
            assert torch.equal(pixels, EXPECTED)
    assert (len(decoding), len(kept(root))) == (20, 1)


@pytest.mark.slow
def test_a_kill_leaves_no_cache(root: Path, decoding: list[str], processes) -> None:
    """Killed with all written and nothing in place, a process leaves what nobody will read."""
    child = processes.Process(target=load_and_die, args=(root, root.parent / "cache"))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [path.suffix for path in kept(root)] == [".part"]
    assert torch.equal(load_test(root), EXPECTED)
    assert len(decoding) == 10
    assert sorted(path.suffix for path in kept(root)) == [".npy", ".part"]


def test_threads_keep_the_order_and_hold_little() -> None:
    given_out: list[int] = []

    def items():
        for item in range(1_000):
            given_out.append(item)
            yield item

    results = decode.in_threads(lambda item: item * item, items())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(given_out) < 10 + 2 * (os.cpu_count() or 1)
    assert list(results) == [item * item for item in range(3, 1_000)]


def test_threads_hand_on_errors() -> None:
    with pytest.raises(ZeroDivisionError):
        list(decode.in_threads(lambda item: 1 // (3 - item), range(10)))


def test_large_images_are_decoded_batch_by_batch(tmp_path: Path) -> None:
    """More images than one batch, of which the last is not full."""
    count = decode.BATCH + 3
    files = {f"test/a/{row:03d}.png": Image.new("L", (2, 2), row) for row in range(count)}
    pixels = load_test(save(tmp_path / "data", files))
    assert pixels[:, 0, 0, 0].tolist() == list(range(count))
