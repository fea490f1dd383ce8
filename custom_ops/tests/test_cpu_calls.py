"""The CPU kernels give the same bits for every stride, thread count and instruction set, and refuse wrong arguments."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rms_norm_native as native
from cpu_kernel import TYPES, Matrix, Setting, backward, forward
from test_cpu_numbers import draw


def everything(library, name, drawn, setting: Setting):
    """All outputs, with and without residual, as bytes."""
    x, residual, dy, dsum, weight = drawn
    made = []
    for r, ds in ((None, None), (residual, dsum)):
        y, invvar, total = forward(library, name, x, weight, r, setting)
        made += [y, invvar] + ([] if total is None else [total])
        made += backward(library, name, dy, x, weight, invvar, ds, setting)
        made.append(backward(library, name, dy, x, weight, invvar, ds, setting, want_dweight=False)[0])
    return [each.tobytes() for each in made]


def isas(library) -> list[int]:
    return list(range(native.ISA_PORTABLE, library.pllm_rms_norm_cpu_isa() + 1))


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("rows", "hidden"), [(1, 65536), (5, 1), (77, 333), (300, 64), (4200, 40)])
def test_same_bits_on_any_threads_instruction_set_and_stores(library, rows, hidden, name):
    drawn = draw(rows, hidden, name, 11)
    for rounding in (native.ROUND_FP32, native.ROUND_LLAMA):
        plain = everything(library, name, drawn, Setting(rounding=rounding))
        for threads in (1, 2, 3, 8):
            assert everything(library, name, drawn, Setting(rounding=rounding, threads=threads)) == plain
        for isa, stores in itertools.product(isas(library), (native.STORES_CACHE, native.STORES_STREAM)):
            assert everything(library, name, drawn, Setting(rounding=rounding, isa=isa, stores=stores)) == plain
        for changed in (Setting(gap=3, offset=1), Setting(gap=16), Setting(poison=0x5A, threads=2)):
            assert everything(library, name, drawn, replace(changed, rounding=rounding)) == plain


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_no_rows(library, name):
    drawn = draw(0, 33, name, 12)
    x, _, dy, _, weight = drawn
    y, invvar, _ = forward(library, name, x, weight)
    assert y.shape == (0, 33) and invvar.shape == (0,)
    dx, dweight = backward(library, name, dy, x, weight, invvar)
    assert dx.shape == (0, 33) and not dweight.any()


def test_fuzz(library):
    """Random shapes, types and settings equal the portable kernel in one thread on packed rows."""
    rng = np.random.default_rng(2024)
    for trial in range(150):
        name = str(rng.choice(list(TYPES)))
        hidden = int(
            rng.choice([rng.integers(1, 40), rng.integers(1, 1500), 1024 * rng.integers(1, 5) + rng.integers(-1, 2)])
        )
        rows = int(rng.integers(0, 1 + min(400, 300_000 // hidden)))
        weight_type = str(rng.choice([name, "fp32"]))
        plain = Setting(
            weight_type, int(rng.integers(0, 2)), float(rng.choice([0, 1e-6, 1e-2])), isa=native.ISA_PORTABLE
        )
        setting = replace(
            plain,
            threads=int(rng.integers(0, 9)),
            isa=int(rng.choice(isas(library))),
            stores=int(rng.integers(0, 3)),
            gap=int(rng.choice([0, 0, 1, 16, 37])),
            offset=int(rng.choice([0, 0, 1, 8])),
            poison=int(rng.integers(0, 256)),
        )
        drawn = draw(rows, hidden, name, trial, weight_type)
        assert everything(library, name, drawn, setting) == everything(library, name, drawn, plain), (
            rows,
            hidden,
            name,
            setting,
        )


def call_forward(library, name="fp32", rows=3, hidden=20, **changed) -> int:
    """Call forward on new matrices, with fields of the arguments (or of `shape__`) replaced."""
    shape = native.Shape(rows, hidden, 1e-6, TYPES[name], TYPES[name], native.ROUND_FP32)
    x, residual, total, y = (Matrix(rows, hidden, name).put(0) for _ in range(4))
    weight, invvar = Matrix(1, hidden, name).put(0), Matrix(1, rows, "fp32")
    args = native.Forward(
        shape,
        x.pointer,
        hidden,
        residual.pointer,
        hidden,
        weight.pointer,
        total.pointer,
        hidden,
        y.pointer,
        hidden,
        invvar.pointer,
    )
    options = native.CpuOptions(**{key[9:]: changed.pop(key) for key in list(changed) if key.startswith("options__")})
    for key, value in changed.items():
        setattr(args.shape if key.startswith("shape__") else args, key.removeprefix("shape__"), value)
    return library.pllm_rms_norm_forward_cpu(args, options)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"shape__rows": -1}, "rows"),
        ({"shape__hidden": 0}, "hidden"),
        ({"shape__hidden": 65537}, "hidden"),
        ({"shape__x_type": 3}, "fp16"),
        ({"shape__weight_type": native.FLOAT16}, "weight"),
        ({"shape__rounding": 2}, "rounding"),
        ({"shape__epsilon": -1.0}, "epsilon"),
        ({"shape__epsilon": float("nan")}, "epsilon"),
        ({"x": None}, "missing"),
        ({"y": None}, "missing"),
        ({"weight": None}, "missing"),
        ({"sum": None}, "together"),
        ({"residual": None}, "together"),
        ({"y_stride": 19}, "overlap"),
        ({"sum_stride": 0}, "overlap"),
        ({"invvar": 2}, "aligned"),
        ({"options__threads": -1}, "threads"),
        ({"options__isa": 9}, "instruction set"),
        ({"options__stores": 3}, "STORES"),
    ],
)
def test_bad_arguments_are_refused(library, changed, word):
    code = call_forward(library, **changed)
    assert code > 0 and word in library.pllm_rms_norm_message(code).decode()
    assert call_forward(library) == 0


def test_a_workspace_too_small_is_refused(library):
    shape = native.Shape(64, 20, 1e-6, native.FLOAT32, native.FLOAT32, native.ROUND_FP32)
    size = library.pllm_rms_norm_workspace_cpu(shape, 1)
    assert 0 < size <= 1024 * 32
    assert library.pllm_rms_norm_workspace_cpu(shape, 0) == 0
    dy, x, dx = (Matrix(64, 20, "fp32").put(1) for _ in range(3))
    weight, dweight, invvar = Matrix(1, 20, "fp32").put(1), Matrix(1, 20, "fp32"), Matrix(1, 64, "fp32").put(1)
    workspace = ctypes.create_string_buffer(size + 16)
    pointer = ctypes.addressof(workspace) + 15 & ~15

    def call(where, bytes_there):
        sums = (dweight.pointer, where, bytes_there)
        args = native.Backward(
            shape, dy.pointer, 20, x.pointer, 20, weight.pointer, invvar.pointer, None, 0, dx.pointer, 20, *sums
        )
        return library.pllm_rms_norm_message(library.pllm_rms_norm_backward_cpu(args, None)).decode()

    assert "workspace" in call(pointer, size - 1) and "workspace" in call(None, size)
    assert call(pointer, size) == "no error"
    shape.hidden = 0
    assert library.pllm_rms_norm_workspace_cpu(shape, 1) < 0


@pytest.mark.parametrize("stores", [native.STORES_CACHE, native.STORES_STREAM])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_in_place_reversed_and_broadcast_rows(library, name, stores):
    rows, hidden = 40, 96
    x, residual, dy, dsum, weight = draw(rows, hidden, name, 13)
    y, invvar, total = forward(library, name, x, weight, residual)
    shape = native.Shape(rows, hidden, 1e-6, TYPES[name], TYPES[name], native.ROUND_FP32)
    options = native.CpuOptions(2, native.ISA_BEST, stores)
    w, r = Matrix(1, hidden, name).put(weight), Matrix(1, rows, "fp32").put(invvar)

    # The sum over the residual, x with its rows in reversed order of memory.
    backwards, in_place, out = (
        Matrix(rows, hidden, name, -hidden).put(x),
        Matrix(rows, hidden, name).put(residual),
        Matrix(rows, hidden, name),
    )
    args = native.Forward(
        shape,
        backwards.pointer,
        -hidden,
        in_place.pointer,
        hidden,
        w.pointer,
        in_place.pointer,
        hidden,
        out.pointer,
        hidden,
        None,
    )
    assert library.pllm_rms_norm_forward_cpu(args, options) == 0
    assert (in_place.array == total).all() and (out.array == y).all()

    # dx over dy, and over dsum.
    dx, _ = backward(library, name, dy, total, w.array[0], invvar, dsum)
    for which in (0, 1):
        both = [Matrix(rows, hidden, name).put(dy), Matrix(rows, hidden, name).put(dsum)]
        s = Matrix(rows, hidden, name).put(total)
        args = native.Backward(
            shape,
            both[0].pointer,
            hidden,
            s.pointer,
            hidden,
            w.pointer,
            r.pointer,
            both[1].pointer,
            hidden,
            both[which].pointer,
            hidden,
        )
        assert library.pllm_rms_norm_backward_cpu(args, options) == 0
        assert (both[which].array == dx).all()

    # One row with stride 0 is used as every row.
    one = Matrix(1, hidden, name).put(x[:1])
    args = native.Forward(shape, one.pointer, 0, None, 0, w.pointer, None, 0, out.pointer, hidden, None)
    assert library.pllm_rms_norm_forward_cpu(args, options) == 0
    assert (out.array == forward(library, name, x[:1], weight)[0]).all()


def test_the_best_instruction_set_is_named(library):
    names = [library.pllm_rms_norm_cpu_isa_name(isa) for isa in isas(library)]
    assert names == [b"portable", b"avx2", b"avx512"][: len(names)]
    assert library.pllm_rms_norm_cpu_isa_name(9) is None
    info = Path("/proc/cpuinfo")
    if info.exists() and {"avx2", "f16c"} <= set(info.read_text().split()):
        assert library.pllm_rms_norm_cpu_isa() >= native.ISA_AVX2


def test_the_last_cache_is_that_of_a_few_cores_and_not_of_a_socket(library):
    """sysconf, and Linux in a virtual machine, may report twelve times as much. Stores would then use the caches, and forward
    would take 1.4 to 2.7 times as long."""
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    reported = int(size.read_text().strip().removesuffix("K")) << 10 if size.exists() else 32 << 20
    assert library.pllm_rms_norm_cpu_cache() == min(reported, 32 << 20)
