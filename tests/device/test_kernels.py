"""The kernels against float64, in Triton's interpreter where there is no GPU, and as compiled."""

import math
import os
import subprocess
import sys

import gpu_check
import numpy as np
import pytest
import torch
from random_model import write_random_model

from scapedist import open_model
from scapedist.model import field as field_module
from scapedist.model import layers as layers_module
from scapedist.model.decoder import DTYPES
from scapedist.model.field import Field
from scapedist.model.layers import COMPUTED_IN, SPLIT_BY, SplitLayers

pytest.importorskip("triton", reason="Triton is not installed")
from scapedist.model import kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ULP = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Half a unit in the last place, relative; a whole one of bfloat16 in the interpreter, which cuts
off where a GPU rounds (see the test of what is compiled)."""
if DEVICE == "cpu":
    ULP[torch.bfloat16] *= 2
SHAPES = [(1, 1, 1), (3, 2, 17), (5, 9, 100), (70, 3, 129), (33, 5, 1024), (4, 1, 1300)]
"""Rows, latents and width: nothing fills its tiles."""


def random(*shape, scale=1.0, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return torch.from_numpy((rng.standard_normal(shape) * scale).astype(np.float32)).to(DEVICE)


def poisoned(shape, dtype):
    """Memory with NaN where nothing is written, and before and after it, which must stay NaN."""
    around = torch.full((np.prod(shape) + 128,), torch.nan, dtype=dtype, device=DEVICE)
    return around, around[64:-64].view(shape)


def assert_inside(around):
    assert around[:64].isnan().all()
    assert around[-64:].isnan().all()
    assert not around[64:-64].isnan().any()


@pytest.mark.parametrize("slope", [0.0, 0.01])
@pytest.mark.parametrize("dtype", ULP, ids=str)
@pytest.mark.parametrize(("n", "n_codes", "width"), SHAPES)
def test_activated_sums_are_rounded_once(n, n_codes, width, dtype, slope):
    parts, codes = random(n, width), random(n_codes, width, seed=1)
    around, out = poisoned((n_codes * n, width), dtype)
    kernels.activate(parts, codes, out, slope, scale=0.25)
    assert_inside(around)
    exact = (parts.double() * 0.25 + codes[:, None].double()).view(-1, width)
    exact = torch.where(exact > 0, exact, exact * slope)
    # the sum and the slope are rounded to float32, relative to what is added
    size = parts.abs() * 0.25 + codes[:, None].abs()
    bound = ULP[dtype] * exact.abs() + 3 * ULP[torch.float32] * size.view(-1, width) + 2.0**-25
    assert ((out.double() - exact).abs() <= bound).all()


def test_a_kernel_rounds_as_torch_does():
    """Also ties, to even, and subnormal numbers."""
    parts = random(40, 50, scale=3.0)
    parts[0] = 1 + torch.arange(50) * 2.0**-12
    parts[1] = 1 + torch.arange(50) * 2.0**-9
    parts[2] = torch.arange(50) * 2.0**-26
    code = torch.zeros((1, 50), device=DEVICE)
    for dtype in (torch.float16, torch.bfloat16) if DEVICE != "cpu" else (torch.float16,):
        out = torch.empty((40, 50), dtype=dtype, device=DEVICE)
        kernels.activate(parts, code, out)
        torch.testing.assert_close(out, parts.relu().to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("n", "n_codes", "width"), SHAPES)
def test_split_values_add_up(n, n_codes, width):
    parts, codes = random(n, width, scale=30.0), random(n_codes, width, seed=1)
    parts[0] *= 1e-6  # the higher part is subnormal
    around, out = poisoned((n_codes * n, 3 * width), torch.float16)
    kernels.activate(parts, codes, out, 0.0, 1.0, SPLIT_BY)
    assert_inside(around)
    x = (parts + codes[:, None]).view(-1, width).relu().double()
    high, again, low = out.double().split(width, 1)
    assert (high == again).all()
    assert (high == x.half().double()).all()
    # 11 bits and 11 bits, and float16's least number: 2**-24, here divided by 2**11
    assert ((high + low / SPLIT_BY - x).abs() <= 2.0**-22 * x + 2.0**-36).all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("value", [7e4, -torch.inf, torch.inf, torch.nan])
def test_what_float16_does_not_hold_stays_visible(value):
    parts, code = random(4, 6).abs(), torch.zeros((1, 6), device=DEVICE)
    parts[1, 2] = value
    for width, split_by in ((6, None), (18, SPLIT_BY)):
        out = torch.empty((4, width), dtype=torch.float16, device=DEVICE)
        kernels.activate(parts, code, out, split_by=split_by)
        assert not out[1].isfinite().all()
        assert out[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("dtype", ULP, ids=str)
@pytest.mark.parametrize(("n", "n_codes", "width"), SHAPES)
def test_outputs_are_sums_in_float32(n, n_codes, width, dtype, n_outputs):
    hidden = random(n_codes * n, width).to(dtype)
    weight, bias = random(n_outputs, width, seed=1).to(dtype), random(n_outputs, seed=2)
    whole = torch.full((n_codes, (n + 7) * n_outputs), torch.nan, device=DEVICE)
    out = whole[:, 3 * n_outputs : (n + 3) * n_outputs]  # as values of a block of points lie
    kernels.outputs(hidden, weight, bias, out.view(n_codes, n, n_outputs))
    exact = (hidden.double() @ weight.double().T + bias).view(n_codes, n * n_outputs)
    size = (hidden.double().abs() @ weight.double().abs().T + bias.abs()).view_as(exact)
    steps = 2 + np.log2(max(width, 2)) + width / 512  # a tree of sums, tile by tile
    assert ((out.double() - exact).abs() <= steps * 2 * ULP[torch.float32] * size).all()
    assert whole[:, : 3 * n_outputs].isnan().all()
    assert whole[:, (n + 3) * n_outputs :].isnan().all()


# Whole fields


@pytest.fixture(params=["relu", "leaky_relu"])
def model(request, tmp_path):
    case = {"activation": request.param}
    return open_model(write_random_model(tmp_path, box_size=12, width=37, zdim=3, **case), 19)


BOUNDS = {"float32": 1e-6, "tf32": 5e-3, "float16x3": 2e-6, "bfloat16": 3e-2, "float16": 3e-3}
"""Relative L2 error of a volume. float32 and float16x3 differ by the order of their sums."""


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "float64"])
@pytest.mark.parametrize("with_kernels", [True, False])
def test_a_field_by_kernels(model, monkeypatch, dtype, with_kernels):
    """All of a decode and of features, as a GPU does them, against float64."""
    if dtype == "tf32" and DEVICE == "cpu":
        pytest.skip("tf32 is a way of a GPU's own products")
    module = kernels if with_kernels else None
    monkeypatch.setattr("scapedist.model.field.check_dtype", lambda dtype, device: None)
    monkeypatch.setattr(layers_module, "kernels_of", lambda device: module)
    # blocks of a GPU, small enough that latents come in groups and points in blocks
    monkeypatch.setattr(field_module, "LEAST_ACTIVATIONS", 2**12)
    monkeypatch.setattr(field_module, "cache_bytes", lambda device: 2**12)
    exact, some = Field(model.decoder, dtype="float64"), Field(model.decoder, DEVICE, dtype)
    some._on_cpu = False
    assert some.block_rows() == 2**12 // 37
    assert some._layers._kernels is module
    latents = model.latents[:5]
    wanted = exact.decode(latents)
    found = some.decode(latents).cpu().double()
    assert (found - wanted).norm() < BOUNDS[dtype] * wanted.norm()
    points = np.ascontiguousarray(exact.lattice().coordinates[:50])
    wanted = exact.features(latents, points, 20)
    found = some.features(latents, points, 20).cpu().double()
    assert (found - wanted).norm() < BOUNDS[dtype] * wanted.norm()


def test_overflow_of_split_layers_is_no_number():
    """A value above 65,504 in any layer leaves no finite output that depends on it."""
    for layer in range(3):
        weights = [random(8, 8, seed=i).double().cpu() for i in range(3)]
        biases = [torch.zeros(8, dtype=torch.float64) for _ in range(3)]
        if layer < 2:
            weights[layer] *= 1e6
        weights.append(weights[0][:2].abs())
        biases.append(torch.zeros(2, dtype=torch.float64))
        split = SplitLayers(weights, biases, 0.0, DEVICE, "float16x3")
        parts = random(5, 8).abs() * (1e6 if layer == 2 else 10.0)
        out = torch.empty((1, 5, 2), device=DEVICE)
        split.outputs(split.hidden(parts, random(1, 8), split.buffers(5)), out)
        assert not out.isfinite().any()


COMPILED = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from scapedist.model import kernels

def compiled(kernel, types, constants, target):
    # as a launch specialises it: numbers that are 1, and multiples of 16
    names = kernel.arg_names
    types = {name: kind for name, kind in types.items() if name not in constants}
    signature = {name: types.get(name, "constexpr") for name in names}
    even = [name for name, kind in types.items() if kind[0] == "*" or name == "width"]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    made = triton.compile(source, target=target, options={"num_warps": kernels.WARPS})
    assert made.asm["cubin"]
    assert "ld.global.v4" in made.asm["ptx"]  # 16 bytes at a time
    return made

for capability in (75, 80, 90, 100):
    target = GPUTarget("cuda", capability, 32)
    for kind in ("fp32", "fp16", "bf16"):
        numbers = dict.fromkeys(("n_rows", "n_codes", "width"), "i32")
        numbers |= dict.fromkeys(("scale", "slope", "split_by"), "fp32")
        types = {"parts": "*fp32", "codes": "*fp32", "out": f"*{kind}"} | numbers
        tile = {"CODES": kernels.CODES, "ROWS": 4, "COLUMNS": 1024}
        for split in (False, True) if kind == "fp16" else (False,):
            made = compiled(kernels._activate, types, tile | {"SPLIT": split}, target)
            assert "st.global.v4" in made.asm["ptx"]
            compiled(kernels._activate, types, tile | {"SPLIT": split, "n_codes": 1}, target)
            if kind == "fp16" or (kind == "bf16" and capability >= 80):
                assert f"cvt.rn.{kind.replace('fp', 'f')}" in made.asm["ptx"]  # rounds to nearest
        types = {"hidden": f"*{kind}", "weight": f"*{kind}", "bias": "*fp32", "out": "*fp32"}
        types |= {"n_rows": "i32", "n_points": "i32", "width": "i32", "stride": "i32"}
        tile = {"ROWS": kernels.OUTPUT_ROWS, "COLUMNS": 512}
        for pair in (False, True):
            compiled(kernels._outputs, types, tile | {"PAIR": pair}, target)
            compiled(kernels._outputs, types, tile | {"PAIR": pair, "n_points": 1}, target)
print("compiled")
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path):
    """For Turing, Ampere, Hopper and Blackwell, by Triton's own assembler, which needs no GPU."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True
    )
    assert done.stdout.endswith("compiled\n"), done.stderr


def test_every_precision_has_its_operands():
    assert set(COMPUTED_IN) == set(DTYPES)


def test_the_check_of_a_gpu_finds_the_kernels_right(monkeypatch):
    monkeypatch.setattr(gpu_check, "kernels_of", lambda device: kernels)
    check = gpu_check.Check(gpu_check.SIZES["tiny"], DEVICE, math.inf)
    gpu_check.beside_products(check)
    assert {row["verdict"] for row in check.rows if row["wanted"] != ""} == {"ok"}
    assert len(check.rows) >= 8
