"""Checks the CUDA kernels: compared with float64, no write outside of a tensor, reproducible, LLaMA's rounding bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import rms_norm_native as native
import torch
from device import NAMES, WHERE, Device, Setting, free_bytes

LIMIT = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
# Each branch of the launchers: a warp per row, blocks, many packs per thread, rows read twice, single elements.
HIDDEN = [
    1,
    2,
    7,
    8,
    31,
    64,
    129,
    256,
    512,
    768,
    1000,
    1024,
    2048,
    2056,
    4096,
    4097,
    5120,
    8192,
    8200,
    12288,
    16384,
    16392,
    32768,
    65535,
    65536,
]
QUICK = [1, 7, 64, 129, 768, 1024, 4096, 4097, 8192, 16384, 65536]
ROWS, MANY_ROWS = (0, 1, 5, 700), 200_000
# Maximum memory per element: a dozen matrices in fp32, ten temporaries in float64.
BYTES_PER_ELEMENT = 160
GUARD = 64  # elements of poison before and after a matrix


class Guarded:
    """A matrix [rows, hidden] with poison before, after and (with `gap`) between the rows.

    `gap` keeps the alignment to 16 bytes if it is a multiple of 8 elements; `offset` moves the start.
    """

    def __init__(self, rows: int, hidden: int, dtype: torch.dtype, gap: int = 0, offset: int = 0):
        self.whole = torch.empty(2 * GUARD + offset + max(rows, 1) * (hidden + gap), dtype=dtype, device=WHERE)
        self.bytes = self.whole.view(torch.uint8)
        self.bytes.fill_(0xA5)
        self.array = self.whole.as_strided((rows, hidden), (hidden + gap, 1), GUARD + offset)

    def put(self, values: torch.Tensor) -> Guarded:
        self.array.copy_(values)
        return self

    def take(self) -> torch.Tensor:
        """Return a copy of the values; fail if the poison around them has changed."""
        values = self.array.clone()
        self.array.copy_(
            torch.full((1,), 0xA5, dtype=torch.uint8, device=WHERE)
            .repeat(self.whole.element_size())
            .view(self.whole.dtype)
        )
        assert bool((self.bytes == 0xA5).all()), "wrote outside of an output"
        return values


def error(found: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    """Return the largest difference relative to `scale`, or to the largest value of its row."""
    if found.numel() == 0:
        return 0.0
    scale = exact.abs().amax(-1, keepdim=True) if scale is None else scale
    return float(((found.double() - exact).abs() / scale.clamp_min(1e-30)).max())


def run_once(
    device: Device, drawn, name: str, weight_type: str, gap: int, offset: int, residual: bool, setting: Setting
):
    """Return y, invvar, sum or None, dx, dweight, and dx computed without dweight."""
    dtype = NAMES[name]
    x_RH, r_RH, dy_RH, ds_RH, w_H = drawn
    rows, hidden = x_RH.shape

    def made(values=None, of=dtype):
        matrix = Guarded(rows, hidden, of, gap, offset)
        return matrix if values is None else matrix.put(values)

    x, y, dy, dx, dx2 = made(x_RH), made(), made(dy_RH), made(), made()
    r, total, ds = (made(r_RH), made(), made(ds_RH)) if residual else (None, None, None)
    weight = Guarded(1, hidden, NAMES[weight_type], 0, offset).put(w_H)
    invvar = Guarded(1, rows, torch.float32)
    device.forward_into(
        x.array, weight.array[0], y.array, invvar.array[0], r and r.array, total and total.array, setting
    )
    s = total.array if residual else x.array
    dweight = Guarded(1, hidden, NAMES[weight_type], 0, offset)
    workspace = device.workspace(s, weight.array[0])
    extra = ds.array if residual else None
    inv_R = invvar.array[0]
    device.backward_into(dy.array, s, weight.array[0], inv_R, dx.array, dweight.array[0], workspace, extra, setting)
    bare = device.workspace(s, weight.array[0], want_dweight=False)
    device.backward_into(dy.array, s, weight.array[0], inv_R, dx2.array, None, bare, extra, setting)
    torch.cuda.synchronize()
    found = [each.take() for each in (y, invvar)]
    found.append(total.take() if residual else None)
    return [*found, dx.take(), dweight.take(), dx2.take()]


def draw(rows: int, hidden: int, name: str, weight_type: str, seed: int):
    generator = torch.Generator(device=WHERE).manual_seed(seed)

    def normal(*shape, of=name):
        return torch.randn(*shape, generator=generator, device=WHERE).to(NAMES[of])

    matrices = [normal(rows, hidden) for _ in range(4)]
    return [*matrices, 1 + 0.2 * normal(1, hidden, of=weight_type)]


def check_one(
    device: Device,
    rows: int,
    hidden: int,
    name: str,
    weight_type: str,
    gap: int,
    offset: int,
    residual: bool,
    llama: bool,
):
    setting = Setting(rounding=native.ROUND_LLAMA if llama else native.ROUND_FP32)
    drawn = draw(rows, hidden, name, weight_type, rows + hidden)
    found = run_once(device, drawn, name, weight_type, gap, offset, residual, setting)
    again = run_once(device, drawn, name, weight_type, gap, offset, residual, setting)
    for a, b in zip(found, again, strict=True):
        assert a is None or torch.equal(a, b), "the second call gives other bits"
    y, invvar, total, dx, dweight, dx2 = found
    assert torch.equal(dx, dx2), "dx depends on whether dweight is computed"
    x, r, dy, ds, w = drawn
    s = x
    if residual:
        s = (x.float() + r.float()).to(x.dtype)
        assert torch.equal(total, s)
    s64, dy64, w64 = s.double(), dy.double(), w.double()
    inv64 = 1 / torch.sqrt((s64**2).mean(1, keepdim=True) + setting.epsilon)
    n64, g64 = s64 * inv64, dy64 * w64
    limit, weight_limit = LIMIT[x.dtype], LIMIT[w.dtype]
    if llama:  # rounded twice
        limit, weight_limit = 2 * limit, max(2 * limit, weight_limit)
    if rows == 0:
        assert not dweight.any()
        return
    assert error(invvar[0], inv64[:, 0], inv64[:, 0]) <= 1e-6
    assert error(y, n64 * w64) <= limit
    exact_dx = inv64 * (g64 - n64 * (g64 * n64).mean(1, keepdim=True)) + (ds.double() if residual else 0)
    scale = torch.maximum((inv64 * g64.abs()).amax(1, keepdim=True), exact_dx.abs().amax(1, keepdim=True))
    assert error(dx, exact_dx, scale) <= limit
    exact_dw, terms = (dy64 * n64).sum(0), (dy64 * n64).pow(2).sum(0).sqrt()
    assert error(dweight[0], exact_dw, torch.maximum(exact_dw.abs(), terms)) <= weight_limit
    # Bit for bit, given the computed inverse rms.
    n = s.float() * invvar[0][:, None]
    expected = ((n.to(x.dtype).float() if llama else n) * w.float()).to(x.dtype)
    assert torch.equal(y, expected), "y is not rounded as requested"


def check_nan(device: Device) -> str:
    for name in NAMES:
        drawn = draw(6, 4096, name, name, 3)
        drawn[0][1, 5], drawn[0][2, 9] = float("nan"), float("inf")
        drawn[0][3] = 0
        y, invvar, _, dx, dweight, _ = run_once(device, drawn, name, name, 0, 0, False, Setting())
        assert bool(y[1].isnan().all()) and bool(invvar[0, 1].isnan())
        assert float(invvar[0, 2]) == 0 and bool(y[2, 9].isnan()) and not y[2, :9].any()
        assert not y[3].any() and bool(y[[0, 4, 5]].isfinite().all())
        assert bool(dx[1].isnan().all()) and bool(dweight.isnan().all()) and bool(dx[[0, 4, 5]].isfinite().all())
    return ", ".join(NAMES)


def fits(rows: int, hidden: int) -> bool:
    return rows * hidden * BYTES_PER_ELEMENT <= free_bytes()


def checks(device: Device, quick: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name and function of each check; the functions return what they checked and raise AssertionError."""
    for hidden, name in itertools.product(QUICK if quick else HIDDEN, NAMES):
        yield f"rows of {hidden} in {name}", partial(check_width, device, hidden, name)
    yield "many rows", partial(check_many_rows, device)
    yield "nan and inf", partial(check_nan, device)


def check_width(device: Device, hidden: int, name: str) -> str:
    """Check all combinations of rows, types of the weight, strides, residual and rounding for one width and type."""
    count, skipped = 0, []
    for rows in ROWS if hidden <= 16392 else (3, 37):
        if not fits(rows, hidden):
            skipped.append(str(rows))
            continue
        for weight_type, gap, offset in ((name, 0, 0), ("fp32", 8, 0), (name, 1, 0), ("fp32", 0, 1)):
            for residual, llama in ((False, False), (True, False), *([(False, True)] if name != "fp32" else [])):
                try:
                    check_one(device, rows, hidden, name, weight_type, gap, offset, residual, llama)
                except AssertionError as failure:
                    where = f"{rows} rows, weight {weight_type}, gap {gap}, offset {offset}, residual {residual}, llama {llama}"
                    raise AssertionError(f"{where}: {failure}") from failure
                count += 1
    missing = f"; the card has too little memory for {', '.join(skipped)} rows" if skipped else ""
    return f"{count} combinations{missing}"


def check_many_rows(device: Device) -> str:
    """Check the gradient of the weight for many rows."""
    many = MANY_ROWS
    while not fits(many, 1024):
        many //= 2
    check_one(device, many, 1024, "fp32", "fp32", 0, 0, True, False)
    return f"{many} of {MANY_ROWS} rows; the card has no memory for more" if many < MANY_ROWS else f"{many} rows"
