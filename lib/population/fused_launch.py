"""CUDA source, compiled while the program runs and launched on torch's tensors: NVRTC and the driver, by ctypes.

NVRTC comes with torch's CUDA builds and the driver with the card, so that nothing else need be installed: no nvcc, no CuPy.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

SHARED_MEMORY_LIMIT = (
    8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: above 48 KiB it has to be asked for
)


def nvrtc() -> ctypes.CDLL:
    """The compiler's library: among the packages beside torch, in torch's own folder, in CUDA's, or wherever the system looks."""
    torch_folder, major = Path(torch.__file__).parent, (torch.version.cuda or "").split(".")[0]
    beside = sorted((torch_folder.parent / "nvidia").glob("*/lib"))
    for folder in (*beside, torch_folder / "lib", Path("/usr/local/cuda/lib64")):
        for library in sorted(folder.glob(f"libnvrtc.so.{major}*")):
            for part in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(part))  # opened by name only later on, and found because it is loaded already
            return ctypes.CDLL(str(library))
    for name in (f"libnvrtc.so.{major}", "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(
        "libnvrtc, which compiles CUDA at run time, was not found: install torch's CUDA build, or nvidia-cuda-nvrtc."
    )


def compile(source: str, architecture: str, defines: dict[str, int]) -> bytes:
    """Machine code of CUDA C++ for an architecture such as ``"sm_90"``; raises RuntimeError with the compiler's log."""
    library, program = nvrtc(), ctypes.c_void_p()
    options = [f"--gpu-architecture={architecture}", "--std=c++17"]
    options = [
        option.encode() for option in (*options, *(f"-D{name}={value}" for name, value in defines.items()))
    ]
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"source.cu", ctypes.c_int(0), None, None
        )
    )
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if failed:
        log = _read(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog)
        raise RuntimeError(
            f"the kernel does not compile for {architecture}: {log.decode(errors='replace').strip()}"
        )
    code = _read(program, library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return code


def _read(program: ctypes.c_void_p, size_of, read) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer))
    return buffer.raw


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"the compiler's library answered with error {code}.")


class Kernel:
    """One compiled function on one device; calling it launches it on torch's current stream."""

    def __init__(self, code: bytes, name: str, device: torch.device, threads: int, shared_bytes: int) -> None:
        self.device, self.threads, self.shared_bytes = device, threads, shared_bytes
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # the context of the device exists from the first tensor on
            self._do("cuModuleLoadData", ctypes.byref(self.module), ctypes.c_char_p(code))
            self._do("cuModuleGetFunction", ctypes.byref(self.function), self.module, name.encode())
            self._do("cuFuncSetAttribute", self.function, SHARED_MEMORY_LIMIT, shared_bytes)

    def __call__(self, blocks: int, *tensors: Tensor) -> None:
        """Launch ``blocks`` blocks on contiguous tensors of the kernel's device; all arguments are pointers."""
        for tensor in tensors:
            if tensor.device != self.device or not tensor.is_contiguous():
                raise ValueError(
                    f"a tensor on {tensor.device} is not a contiguous one on {self.device}: the kernel reads no other."
                )
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(p) for p in pointers))
        with torch.cuda.device(self.device):
            stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
            grid, block = (blocks, 1, 1), (self.threads, 1, 1)
            self._do(
                "cuLaunchKernel", self.function, *grid, *block, self.shared_bytes, stream, arguments, None
            )

    def _do(self, call: str, *arguments: object) -> None:
        code = getattr(self.driver, call)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(
                f"{call} failed on {self.device}: {(text.value or b'unknown error').decode()} ({code})."
            )
