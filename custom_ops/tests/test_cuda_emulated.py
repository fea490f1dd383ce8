"""The CUDA kernels and launchers without a GPU: g++ compiles their sources, and threads run as fibers.

This tests indices, bounds, barriers, reductions, the stages of copies, the choice of kernel and the workspace. Speed and the
memory model of the hardware are tested by gpu/run.sh. Asynchronous copies are done when the kernel waits for them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rms_norm_native as native
from cpu_kernel import Setting, backward, bf16, error, exact_backward, exact_forward, forward, narrow, widen
from test_cpu_numbers import LIMIT, draw

# Replacements for constructs of CUDA that C++ does not have.
REPLACED = [
    (
        r"extern __shared__ (\w+) (\w+)\[\];",
        r"\1* \2 = reinterpret_cast<\1*>((reinterpret_cast<uintptr_t>(emulation::block.shared.data()) + 15) / 16 * 16);",
    ),
    (
        r"__device__ inline void copy_16\(void\* shared, const void\* global\) \{",
        r"\g<0>\n  return emulation::copy_16(shared, global);",
    ),
    (r"__device__ inline void copies_end\(\) \{", r"\g<0>\n  return emulation::copies_end();"),
    (r"__device__ inline void copies_wait\(\) \{", r"\g<0>\n  return emulation::copies_wait(kGroups);"),
    (
        r"  void\* pointers\[\] = [^}]*\};\n  return code_of\(cudaLaunchKernel[^;]*;",
        "  (void)stream;\n  const auto run = [&] { kernel(args...); };\n"
        "  return code_of(emulation::launch(reinterpret_cast<const void*>(kernel), grid, block, shared, run));",
    ),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The CUDA library for this CPU."""
    folder = tmp_path_factory.mktemp("emulated")
    missing = {pattern for pattern, _ in REPLACED}
    for source in [*native.CSRC.glob("*.cuh"), *native.CSRC.glob("*.cu"), *native.CSRC.glob("*.h")]:
        text = source.read_text()
        for pattern, replacement in REPLACED:
            text, count = re.subn(pattern, replacement, text)
            missing -= {pattern} if count else set()
        (folder / source.name).write_text(text)
    assert not missing
    shim = native.CSRC.parent / "tests" / "emulation"
    for header in shim.glob("*.h"):
        (folder / header.name).write_text(header.read_text().replace("../../csrc/", ""))
    (folder / "rms_norm_cuda.cu").rename(folder / "emulated.cpp")
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-I", str(folder)]
    path = folder / "emulated.so"
    subprocess.run(["g++", *flags, str(folder / "emulated.cpp"), "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def emulated(path):
    """The functions of the CUDA library under the names of the CPU library, for the same helpers."""
    cuda = native.load_cuda(path)
    return SimpleNamespace(
        pllm_rms_norm_message=cuda.pllm_rms_norm_message_cuda,
        pllm_rms_norm_workspace_cpu=cuda.pllm_rms_norm_workspace_cuda,
        pllm_rms_norm_forward_cpu=lambda args, options: cuda.pllm_rms_norm_forward_cuda(args, None),
        pllm_rms_norm_backward_cpu=lambda args, options: cuda.pllm_rms_norm_backward_cuda(args, None),
    )


# A warp per row with 1, 2 and 4 packs; blocks with 2 and 4; rows read twice. gap 1 and offset 1: element by element.
CASES = [
    ("bf16", 9, 8, {}),
    ("bf16", 9, 264, {}),
    ("fp16", 3, 512, {"weight_type": "fp32"}),
    ("bf16", 3, 1000, {"gap": 8}),
    ("bf16", 3, 1032, {}),
    ("fp32", 9, 4, {}),
    ("fp32", 3, 2052, {}),
    ("bf16", 3, 4104, {"weight_type": "fp32"}),
    ("bf16", 3, 8200, {}),
    ("fp32", 2, 8200, {}),
    ("fp32", 70, 33, {}),
    ("fp16", 70, 40, {"gap": 1}),
    ("bf16", 2, 300, {"offset": 1}),
    ("fp32", 0, 64, {}),
    ("fp32", 700, 8, {}),
    # More rows per block than one running sum of dweight takes.
    ("fp32", 4300, 4, {}),
    ("fp32", 2300, 3, {}),
]


@pytest.mark.parametrize(("name", "rows", "hidden", "how"), CASES)
def test_beside_float64(emulated, name, rows, hidden, how):
    setting = Setting(**how)
    weight_type = setting.weight_type or name
    x, residual, dy, dsum, weight = draw(rows, hidden, name, 21, weight_type)
    for r, ds in ((None, None), (residual, dsum)):
        y, invvar, total = forward(emulated, name, x, weight, r, setting)
        s = x if r is None else narrow(widen(x) + widen(r), name)
        assert r is None or (total == s).all()
        assert error(y, exact_forward(widen(s), widen(weight), 1e-6)[0]) <= LIMIT[name]
        exact_dx, exact_dweight = exact_backward(
            widen(dy), widen(s), widen(weight), 1e-6, 0 if ds is None else widen(ds)
        )
        dx, dweight = backward(emulated, name, dy, s, weight, invvar, ds, setting)
        scale = np.maximum(
            np.abs(exact_dx), np.abs(widen(dy) * widen(weight) * invvar[:, None]).max(axis=1, keepdims=True)
        )
        assert rows == 0 or (np.abs(widen(dx) - exact_dx) / scale).max() <= LIMIT[name]
        assert error(dweight, exact_dweight) <= LIMIT[weight_type]
        bare, _ = backward(emulated, name, dy, s, weight, invvar, ds, setting, want_dweight=False)
        assert (bare == dx).all()


@pytest.mark.parametrize("kib", [0, 54, 100, 160])
def test_little_shared_memory(emulated, monkeypatch, kib):
    """Shared memory for no row (rows are read twice), one row, or several."""
    x, _, dy, dsum, weight = draw(41, 1032, "bf16", 23)
    _, invvar, _ = forward(emulated, "bf16", x, weight)
    plain = backward(emulated, "bf16", dy, x, weight, invvar, dsum)
    monkeypatch.setenv("EMULATED_SHARED_KIB", str(kib))
    dx, dweight = backward(emulated, "bf16", dy, x, weight, invvar, dsum)
    assert error(dx, widen(plain[0])) <= LIMIT["bf16"] and error(dweight, widen(plain[1])) <= LIMIT["bf16"]
    if kib:
        assert (dx == plain[0]).all()


def test_the_limit_of_shared_memory_never_decreases(emulated):
    """Long and short rows in the same kernel: the emulation fails if the limit decreases."""
    for hidden in (4096, 264, 2048):
        x, _, dy, dsum, weight = draw(3, hidden, "bf16", 24)
        _, invvar, _ = forward(emulated, "bf16", x, weight)
        exact = exact_backward(widen(dy), widen(x), widen(weight), 1e-6, widen(dsum))[0]
        assert error(backward(emulated, "bf16", dy, x, weight, invvar, dsum)[0], exact) <= LIMIT["bf16"]


@pytest.mark.parametrize("number", [1, 35, 100])
def test_errors_of_cuda_have_their_own_codes(emulated, monkeypatch, number):
    shape = native.Shape(4, 64, 1e-6, native.FLOAT32, native.FLOAT32, native.ROUND_FP32)
    bad = native.Shape(4, 0, 1e-6, native.FLOAT32, native.FLOAT32, native.ROUND_FP32)
    monkeypatch.setenv("EMULATED_ERROR", str(number))
    arguments = native.Backward(shape)
    codes = [
        -emulated.pllm_rms_norm_workspace_cpu(shape, 1),
        emulated.pllm_rms_norm_backward_cpu(arguments, None),
    ]
    assert [emulated.pllm_rms_norm_message(code) for code in codes] == [f"CUDA error {number}".encode()] * 2
    assert b"hidden" in emulated.pllm_rms_norm_message(-emulated.pllm_rms_norm_workspace_cpu(bad, 1))


def test_llamas_rounding(emulated):
    x, _, dy, _, weight = draw(3, 72, "bf16", 22)
    setting = Setting(rounding=native.ROUND_LLAMA)
    y, invvar, _ = forward(emulated, "bf16", x, weight, setting=setting)
    n = bf16(widen(x).astype(np.float32) * invvar[:, None])
    assert (y == bf16((widen(n) * widen(weight)).astype(np.float32))).all()
    _, dweight = backward(emulated, "bf16", dy, x, weight, invvar, setting=setting)
    assert error(dweight, (widen(dy) * widen(n)).sum(axis=0)) <= LIMIT["bf16"]


@pytest.mark.slow
@pytest.mark.hf  # torch
def test_the_checks_for_gpus_run(path, monkeypatch):
    """`gpu/check.py` with torch's tensors in host memory reports a wrong kernel."""
    import torch

    monkeypatch.syspath_prepend(Path(__file__).parent / "gpu")
    import check
    import device

    for module in (check, device):
        monkeypatch.setattr(module, "WHERE", "cpu")
    monkeypatch.setattr(check, "ROWS", (0, 5))
    monkeypatch.setattr(check, "MANY_ROWS", 40)
    monkeypatch.setattr(check, "QUICK", [7, 64])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=None))
    for name, found in {"mem_get_info": (1 << 30, 1 << 30), "memory_reserved": 0, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    card = device.Device(path)
    checks = dict(check.checks(card, quick=True))
    assert list(checks) == [f"rows of {hidden} in {name}" for hidden in (7, 64) for name in device.NAMES] + [
        "many rows",
        "nan and inf",
    ]
    assert checks["rows of 7 in bf16"]() == "24 combinations"
    assert checks["many rows"]() == "40 rows" and checks["nan and inf"]() == "fp32, fp16, bf16"
    with monkeypatch.context() as patch:
        patch.setattr(device.Device, "backward_into", lambda *_, **__: None)
        with pytest.raises(AssertionError, match="rows, weight fp32, gap"):
            checks["rows of 7 in fp32"]()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 1))
    assert "too little memory" in checks["rows of 64 in fp16"]()
    for name in ("check", "device"):
        del sys.modules[name]
