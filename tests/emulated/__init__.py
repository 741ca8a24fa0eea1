"""A device that machines without a GPU can have: `python -m pytest tests/test_cuda.py --emulate`.

Its memory and its arithmetic are the CPU's, its rules a GPU's: an operator refuses tensors of two
devices and generators of another one, autocast has CUDA's lists, and it counts how often the host
waited for a value. It has no kernels of its own: what only fails in those, and compilation, needs
the real thing. Needs a C++ compiler and ninja; the first time takes half a minute.
"""

import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import accelerate.state
import torch
from torch.utils import backend_registration
from torch.utils.cpp_extension import load

NAME = "emulated"
extension: Any = None


def start() -> None:
    """Register the device in this process, and make it the default of programs."""
    global extension
    extension = load("emulated_device", [str(Path(__file__).with_name("device.cpp"))])
    backend_registration.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, module())
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=True)
    # By way of tensors: between storages PyTorch itself only copies for devices that it knows.
    torch.UntypedStorage.copy_ = copy  # type: ignore[method-assign]
    accelerate.state.PartialState.default_device = property(lambda self: torch.device(NAME))  # type: ignore


def module() -> types.ModuleType:
    """The module of the device, as torch.cuda is that of CUDA."""
    found = types.ModuleType(f"torch.{NAME}")
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True,
        "_is_in_bad_fork": False, "is_autocast_enabled": False, "synchronize": None,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(found, name, lambda *_, answer=answer: answer)
    for name in ("manual_seed", "manual_seed_all", "set_device"):
        setattr(found, name, lambda _: None)
    found.device = lambda _: nullcontext()  # type: ignore[attr-defined]
    return found


def copy(to: torch.UntypedStorage, source: torch.UntypedStorage, _=None) -> torch.UntypedStorage:
    as_tensor(to).copy_(as_tensor(source))
    return to


def as_tensor(storage: torch.UntypedStorage) -> torch.Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage, 0, (storage.nbytes(),), (1,))


def started() -> bool:
    return extension is not None


def waits() -> int:
    """Number of times that the host has asked for a value of the device."""
    return extension.waits()
