"""Pickles are read as data: malicious ones execute nothing, and are refused by name."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._utils import _rebuild_tensor_v2

from rdc.converters import unpickle
from rdc.converters.unpickle import Node, read
from tests.support.published_edm import EDMLoss, EDMPrecond, Module, pickled, published_modules

TINY = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1,
        "attn_resolutions": [8], "img_resolution": 8, "img_channels": 3}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which anything that is executed leaves a file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Touch:
    """Unpickling it runs a command."""

    def __reduce__(self):
        return os.system, ("touch executed",)


class Eval:
    def __reduce__(self):
        return eval, ("open('executed', 'w').close()",)


class Load:
    """A tensor's storage as EDM's files have it, but of other bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


class Call:
    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def saved(value: Any, *, legacy: bool = False) -> bytes:
    file = BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def by_persistent_id() -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", Touch()) if isinstance(obj, set) else None

    file = BytesIO()
    Pickler(file, protocol=4).dump({"ema": {1}})
    return file.getvalue()


def persistent_object() -> bytes:
    """A pickle with a forbidden object in the state of one of EDM's objects."""
    return pickled(EDMLoss(weight=[{"a": Touch()}]))


def in_zip() -> bytes:
    """A file of torch.save whose pickle was exchanged."""
    file = BytesIO()
    with (
        zipfile.ZipFile(BytesIO(saved({"a": torch.zeros(2)}))) as old,
        zipfile.ZipFile(file, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, b"cos\nsystem\n(S'touch executed'\ntR." if name.endswith("data.pkl")
                         else old.read(name))  # fmt: skip
    return file.getvalue()


SYSTEM = r"(os|posix|nt)\.system"
MALICIOUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "reduce": (lambda: pickle.dumps(Touch()), SYSTEM),
    "nested": (lambda: pickle.dumps({"ema": OrderedDict(a=[({"b": Touch()},)])}), SYSTEM),
    "eval": (lambda: pickle.dumps([Eval()]), r"builtins\.eval"),
    "old eval": (lambda: b"c__builtin__\neval\n(S'1'\ntR.", r"__builtin__\.eval"),
    "instance": (lambda: b"(S'touch executed'\nios\nsystem\n.", SYSTEM),
    "persistent id": (by_persistent_id, SYSTEM),
    "plain persistent id": (lambda: b"Pwhatever\n.", "persistent"),
    "persistent object": (persistent_object, SYSTEM),
    "torch zip": (lambda: saved({"a": [Touch()]}), SYSTEM),
    "torch legacy": (lambda: saved({"a": [Touch()]}, legacy=True), SYSTEM),
    "exchanged pickle": (in_zip, SYSTEM),
    "storage of a plain pickle": (lambda: pickle.dumps(Load(pickle.dumps(Touch(), 2))), SYSTEM),
    "storage of a zip": (lambda: pickle.dumps(Load(saved(Touch()))), SYSTEM),
    "storage of a legacy file": (lambda: pickle.dumps(Load(saved(Touch(), legacy=True))), SYSTEM),
    "storage of a storage": (
        lambda: pickle.dumps(Load(saved(Load(saved(Touch())), legacy=True))),
        r"torch\.storage\._load_from_bytes",
    ),
    "torch.load": (lambda: pickle.dumps(Call(torch.load, "x")), r"torch\.serialization\.load"),
    "numpy.load": (lambda: b"cnumpy\nload\n(S'x.npy'\ntR.", r"numpy\.load"),
    "numpy array": (lambda: pickle.dumps(np.zeros(3)), r"numpy\._core\.\w+\.\w+"),
    "getattr": (lambda: b"cbuiltins\ngetattr\n.", r"builtins\.getattr"),
    "partial": (lambda: b"cfunctools\npartial\n.", r"functools\.partial"),
    "attribute of something allowed": (
        lambda: b"\x80\x04\x8c\x0bcollections\x8c\x16OrderedDict.__reduce__\x93.",
        r"collections\.OrderedDict\.__reduce__",
    ),
    "our own module": (lambda: b"crdc.converters.unpickle\nread\n.", r"rdc\.converters\.unpickle"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_files_execute_nothing(name: str, here: Path) -> None:
    make, asked = MALICIOUS[name]
    (here / "file.pkl").write_bytes(make())
    with pytest.raises(
        ValueError, match=rf"file\.pkl is refused: .*{asked}.*was executed"
    ) as caught:
        read(here / "file.pkl")
    assert [path.name for path in here.iterdir()] == ["file.pkl"]
    # Torch's own message advises to load such a file all the same.
    assert "weights_only" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("name", ["reduce", "eval", "instance", "storage of a zip"])
def test_the_malicious_files_are_real(name: str, here: Path) -> None:
    """Otherwise the test above would pass for nothing."""
    pickle.loads(MALICIOUS[name][0]())
    assert (here / "executed").exists()


def test_the_source_in_edms_files_is_code_that_its_reader_executes(here: Path) -> None:
    content = pickled(EDMPrecond(**TINY))
    with published_modules(), pytest.raises(AssertionError, match="the code is executed"):
        pickle.loads(content)
    assert (here / "executed").exists()


def test_the_source_in_edms_files_is_left_unread(here: Path) -> None:
    network = EDMPrecond(**TINY)
    (here / "edm.pkl").write_bytes(pickled(network))
    document = read(here / "edm.pkl")
    assert not (here / "executed").exists()
    assert document["dataset_kwargs"] == {"path": "cifar10.zip", "use_labels": True}
    assert type(document["dataset_kwargs"]) is dict
    assert isinstance(document["loss_fn"], Node)
    ema = document["ema"]
    assert (ema.class_name, ema.child("model").class_name) == ("EDMPrecond", "SongUNet")
    assert ema.attributes["_init_kwargs"] == TINY
    block = ema.child("model").child("enc").child("8x8_block0")
    assert type(block.attributes["skip_scale"]) is float
    assert block.attributes["skip_scale"] == np.sqrt(0.5)
    tensors = ema.tensors()
    assert tensors.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(tensors[name], value)


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_come_back(legacy: bool, here: Path) -> None:
    document = {"a": [torch.arange(3)], "b": OrderedDict(c=nn.Parameter(torch.ones(2, 2))), "d": 1}
    (here / "a.pt").write_bytes(saved(document, legacy=legacy))
    back = read(here / "a.pt")
    assert torch.equal(back["a"][0], torch.arange(3))
    assert torch.equal(back["b"]["c"], torch.ones(2, 2))
    assert back["d"] == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_numpy_scalars_of_a_training_checkpoint_become_plain_numbers(
    legacy: bool, here: Path
) -> None:
    """score_sde's warm-up leaves NumPy's scalars as learning rates in the optimizer's state."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=2e-4)
    optimizer.param_groups[0]["lr"] = 2e-4 * np.minimum(100 / 5000, 1.0)
    others = [np.float32(0.25), np.int64(-3), np.bool_(True)]
    document = {"optimizer": optimizer.state_dict(), "others": others}
    (here / "a.pth").write_bytes(saved(document, legacy=legacy))
    allowed = set(torch.serialization.get_safe_globals())  # in torch a set, listed in any order
    back = read(here / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == allowed
    rate = back["optimizer"]["param_groups"][0]["lr"]
    assert (type(rate), rate) == (float, 2e-4 * 0.02)
    assert [(type(value), value) for value in back["others"]] == [
        (float, 0.25), (int, -3), (bool, True)
    ]  # fmt: skip


@pytest.mark.parametrize("value", [np.zeros(3), np.datetime64("2020-01-01"), np.str_("a")])
def test_other_numpy_values_in_files_of_torch_are_refused(value: Any, here: Path) -> None:
    (here / "a.pth").write_bytes(saved({"a": value}))
    with pytest.raises(ValueError, match=r"a\.pth is refused: .*(numpy\._core|not a number)"):
        read(here / "a.pth")


def test_plain_values_come_back(here: Path) -> None:
    values = {
        "floats": [np.float64(1.5), np.float32(0.25), np.float16(2)],
        "integers": [np.int64(-3), np.uint8(7), np.bool_(True)],
        "others": [{1, 2}, OrderedDict(a=(1, None)), b"bytes", "text", 1 + 0j == 1],
        "types": [torch.float32, torch.int64],
        "view": torch.arange(12.0).view(3, 4).T[1:],
        "parameter": nn.Parameter(torch.ones(2)),
    }
    (here / "a.pkl").write_bytes(pickle.dumps(values))
    back = read(here / "a.pkl")
    assert torch.equal(back.pop("view"), values.pop("view"))
    assert torch.equal(back.pop("parameter"), values.pop("parameter"))
    assert back == values
    assert {type(value) for value in back["floats"]} == {float}


@pytest.mark.parametrize("code", ["O", "V8", "U4", "f16", "M8[s]", "f8,f8"])
def test_numpy_types_that_are_not_numbers_are_refused(code: str, here: Path) -> None:
    content = b"cnumpy\ndtype\n(V" + code.encode() + b"\nI00\nI01\ntR."
    (here / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"has a NumPy value of type '.*', not a number"):
        read(here / "a.pkl")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (7,), (1,)), (5, (2,), (1,)), (-1, (1,), (1,)), (0, (2,), (9,))],
)
def test_tensors_beyond_their_storage_are_refused(
    offset: int, size: tuple, stride: tuple, here: Path
) -> None:
    storage = torch.arange(6.0).__reduce_ex__(4)[1][0]  # type: ignore[index]
    tensor = Call(_rebuild_tensor_v2, storage, offset, size, stride, False, {})
    (here / "a.pkl").write_bytes(pickle.dumps(tensor))
    with pytest.raises(ValueError, match=r"a\.pkl is refused: .*(out of bounds|offset)"):
        read(here / "a.pkl")


def test_storages_that_are_not_storages_are_refused(here: Path) -> None:
    (here / "a.pkl").write_bytes(pickle.dumps(Load(saved({"a": 1}))))
    with pytest.raises(ValueError, match="a tensor's storage is a dict"):
        read(here / "a.pkl")


def shared(depth: int) -> bytes:
    """A list that holds the same list twice, and so on: 2^depth values in few bytes."""
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return pickle.dumps(value, 2)


def deflated() -> bytes:
    """A file of torch.save whose tensor of zeros was compressed."""
    file = BytesIO()
    with (
        zipfile.ZipFile(BytesIO(saved({"a": torch.zeros(100_000)}))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "memo": (lambda: b"\x80\x02Nr\xff\xff\xff\x07.", "a memo of 134217727 objects after 2"),
    "text memo": (lambda: b"Np134217727\n.", "a memo of 134217727 objects after 1"),
    "shared lists": (lambda: shared(40), "hold more than 100[0-9]{3} values"),
    "shared lists of torch": (lambda: saved(pickle.loads(shared(40))), "hold more than 10"),
    "list in itself": (lambda: b"\x80\x02]q\x00h\x00a.", "hold more than 100"),
    "deflated": (deflated, "its archive of [0-9]+ bytes expands to 4[0-9]{5}"),
    "deflated storage": (lambda: pickle.dumps(Load(deflated())), "its archive of [0-9]+ bytes"),
}


@pytest.mark.parametrize("name", LARGE)
def test_small_files_that_ask_for_much_memory_or_time_are_refused(name: str, here: Path) -> None:
    make, message = LARGE[name]
    (here / "a.pkl").write_bytes(make())
    with pytest.raises(ValueError, match=rf"a\.pkl is refused: .*{message}"):
        read(here / "a.pkl")


def test_modules_that_share_children_are_refused(here: Path) -> None:
    """Their state dictionary would have 2^40 names."""
    top = Module()
    for _ in range(40):
        inner, top = top, Module()
        top._modules.update(a=inner, b=inner)
    (here / "a.pkl").write_bytes(pickled(top))
    with pytest.raises(ValueError, match="hold more than 1"):
        read(here / "a.pkl")


NAMES = (b"torch.storage\n_load_from_bytes", b"torch.nn.modules.container\nModuleDict",
         b"numpy\ndtype", b"collections\nOrderedDict", b"dnnlib.util\nEasyDict",
         b"torch\nfloat32", b"torch_utils.persistence\n_reconstruct_persistent_obj")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_pickles_cannot_change_the_reader(name: bytes, here: Path) -> None:
    """BUILD sets attributes of whatever stands before it."""
    before = {key: dict(getattr(value, "__dict__", {})) for key, value in unpickle.ALLOWED.items()}
    for state in (b"}V__setstate__\nI1\ns", b"(N}V__doc__\nI1\nst", b"(N}V__kwdefaults__\n}st"):
        (here / "a.pkl").write_bytes(b"c" + name + b"\n" + state + b"b.")
        try:
            read(here / "a.pkl")
        except ValueError as error:
            assert "is refused" in str(error)
    after = {key: dict(getattr(value, "__dict__", {})) for key, value in unpickle.ALLOWED.items()}
    assert after == before
    assert all(getattr(value, "__doc__", "") != 1 for value in unpickle.ALLOWED.values())
    assert all(
        getattr(value, "__kwdefaults__", None) is None for value in unpickle.ALLOWED.values()
    )


WHOLE: dict[str, Callable[[], bytes]] = {
    "edm": lambda: pickled(EDMPrecond(**TINY)),
    "zip": lambda: saved({"a": torch.zeros(1000)}),
    "legacy": lambda: saved({"a": torch.zeros(1000)}, legacy=True),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kept", [0, 1, 20, 500, 2000, -1])
def test_truncated_files_are_refused(name: str, kept: int, here: Path) -> None:
    (here / "a.pkl").write_bytes(WHOLE[name]()[:kept])
    with pytest.raises(ValueError, match=r"a\.pkl is refused: .+; nothing in it was executed"):
        read(here / "a.pkl")


@pytest.mark.parametrize("content", [b"\x89PNG....", b"PK\x03\x04nothing", b"{}", b"\xff" * 99])
def test_other_files_are_refused(content: bytes, here: Path) -> None:
    (here / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pkl is refused"):
        read(here / "a.pkl")


@pytest.mark.parametrize("path", ["missing.pkl", "."])
def test_what_is_not_a_file_is_named(path: str, here: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^source: .* is not a file"):
        read(here / path)


def test_objects_that_are_not_modules_are_refused(here: Path) -> None:
    class Odd(Module):
        pass

    odd = Odd()
    odd._modules["child"] = 3  # type: ignore[assignment]
    (here / "a.pkl").write_bytes(pickled(odd))
    document = read(here / "a.pkl")
    with pytest.raises(ValueError, match="EDMLoss is not a module: it has no _parameters"):
        document["loss_fn"].tensors()
    with pytest.raises(ValueError, match="Odd has no module 'child'"):
        document["ema"].tensors()
    with pytest.raises(ValueError, match="Odd has no module 'other'"):
        document["ema"].child("other")
