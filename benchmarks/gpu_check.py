"""One look at a GPU: whether what it computes is right, and how fast it is.

    python benchmarks/gpu_check.py [--size full] [--output gpu_check.json]

Needs torch and CuPy, the repository, and at most 8 minutes; cuML and Zarr are used where they are
installed. Nothing is installed or changed. Every section stands alone: one that fails is told
below the table and the others go on. Weights are random (what decoding costs does not depend on
them), sizes are those of the paper: 344,069 particles, box 128, three hidden layers of 1,024, a
mask of 162,210 voxels. ``--size tiny`` runs the same code in seconds, on the CPU where there is no
GPU.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import tempfile
import time
import traceback
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # the repository need not be installed
    sys.path.insert(0, str(ROOT))

import harness  # noqa: E402
from harness import Row, Table, exhaust, seconds_of  # noqa: E402

from scapedist import backend  # noqa: E402
from scapedist.analysis.coordinates import Frame, ReducedMap  # noqa: E402
from scapedist.analysis.eigen import leading_eigenpairs  # noqa: E402
from scapedist.analysis.gram import gram_matrix, into_squared_distances  # noqa: E402
from scapedist.analysis.linkage import nearest_neighbor_chain  # noqa: E402
from scapedist.analysis.mask import Mask  # noqa: E402
from scapedist.analysis.reduced import Calibration, FieldModel, fit_ridge  # noqa: E402
from scapedist.model import field as module  # noqa: E402
from scapedist.model import precision  # noqa: E402
from scapedist.model.decoder import GPU_ONLY, Decoder  # noqa: E402
from scapedist.model.field import Field, free_bytes  # noqa: E402
from scapedist.model.layers import SPLIT_BY, kernels_of  # noqa: E402

TITLE = "One look at a GPU"
TABLES = (
    Table("rows", "section | what | value | unit | wanted | verdict"),
    Table("failures", "section | error", "FAILED:"),
)
OUTPUT = Path("benchmarks/results/gpu_check.json")
OPTIONS: dict[str, Row] = {
    "--device": {"choices": ("cuda", "cpu"), "help": "default: a GPU where there is one"},
    "--seconds": {"type": float, "default": 420, "help": "after which nothing new is begun"},
}
PARTICLES, ZDIM = 344_069, 8
MINUTES_REDUCED, FRACTION = 2, 0.75
"""What is to be reached at the paper's size: the reduced embedding of all particles, and the part
of the measured 16-bit matrix rate that the decoding reaches."""
ERRORS = {"float32": 1e-5, "tf32": 5e-3, "float16x3": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
"""Largest relative L2 error of a volume against float64 on the CPU."""


Size = namedtuple(
    "Size", "boxes width check_box volumes voxels components points training gram linkages matrix"
)
"""How large each section is: boxes and width of three hidden layers; the box that is compared with
float64; volumes of a rate; the mask's voxels; components; points and training volumes of the
reduced map; volumes of the Gram matrix and of linkages; the edge of products for the matrix rate.
"""
LINKAGES = (10_000, 50_000, 100_000)
SIZES = {
    "tiny": Size((16,), 32, 12, 3, 500, 4, 20, 30, 40, (60,), 64),
    "full": Size((128, 256), 1024, 32, 8, 162_210, 20, 1000, 1500, 4000, LINKAGES, 8192),
}


@dataclass
class Check:
    """What the sections share, and what they found; none begins anything after the deadline."""

    size: Size
    device: str
    deadline: float
    section: str = ""
    rows: list[Row] = field(default_factory=list)
    matrix_tflops: dict[str, float] = field(default_factory=dict)
    exact_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def dtypes(self) -> list[str]:
        """Precisions that the device has."""
        return [name for name in ERRORS if name not in GPU_ONLY or self.device != "cpu"]

    @property
    def late(self) -> bool:
        """Whether time is up."""
        return time.perf_counter() > self.deadline

    def add(self, what: str, value: float, unit: str, wanted: float | None = None) -> None:
        """A row; ``wanted`` is the largest value that is good, or the least for fractions.

        How fast it is to be is said of a GPU alone.
        """
        if self.device == "cpu" and unit in ("fraction", "minutes"):
            wanted = None
        verdict = ""
        if wanted is not None:
            good = value >= wanted if unit == "fraction" else value <= wanted
            verdict = "ok" if good else "MISSED"
        row = {"section": self.section, "what": what, "value": float(value), "unit": unit}
        self.rows.append(row | {"wanted": "" if wanted is None else wanted, "verdict": verdict})
        print(f"{self.section}: {what}: {value:.5g} {unit} {verdict}", flush=True)

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """Median time of calls, the device's work included, after one that is not timed.

        They are fewer where time is up.
        """

        def whole() -> None:
            work()
            if self.device != "cpu":
                torch.cuda.synchronize()

        whole()
        found = [seconds_of(whole)]
        while len(found) < repeats and not self.late:
            found.append(seconds_of(whole))
        return statistics.median(found)

    def time(self, what: str, work: Callable[[], Any], repeats: int, n: int = 0) -> float:
        """A row of such a time in seconds, or in ms for each of n; its seconds."""
        seconds = self.seconds(work, repeats) / (n or 1)
        self.add(what, seconds * 1e3 if n else seconds, "ms" if n else "s")
        return seconds

    def once(self, what: str, work: Callable[[], Any]) -> Any:
        """A row of the seconds of a call that is too long to repeat; what it returns."""
        start = time.perf_counter()
        found = work()
        self.add(what, time.perf_counter() - start, "s")
        return found

    def field(self, dtype: str = "bfloat16") -> Field:
        """Where the device decodes: the first box, random weights."""
        return Field(random_decoder(self.size.boxes[0], self.size.width), self.device, dtype)

    def array(self, values: np.ndarray) -> Any:
        """Where the device computes."""
        return backend.to_device(values, self.device)

    def release(self) -> None:
        """Give what torch and CuPy keep back to the device."""
        if self.device != "cpu":
            import cupy

            torch.cuda.empty_cache()
            cupy.get_default_memory_pool().free_all_blocks()


def random_decoder(box_size: int, width: int) -> Decoder:
    """A Fourier decoder of cryoDRGN's default shape, three hidden layers, with random weights."""
    rng = np.random.default_rng(box_size + width)
    frequencies = rng.standard_normal((3 * (box_size // 2), 3)) * np.pi * box_size / 16
    sizes = [2 * len(frequencies) + ZDIM, *[width] * 4, 2]
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    return Decoder(
        kind="fourier_sphere",
        encoding="gaussian",
        frequencies=frequencies,
        weights=tuple(rng.standard_normal(shape) * np.sqrt(2 / shape[1]) for shape in shapes),
        biases=tuple(rng.standard_normal(shape[0]) * 0.1 for shape in shapes),
        negative_slope=0.0,
        zdim=ZDIM,
        box_size=box_size,
        extent=0.5,
        norm=(0.0, 1.0),
    )


def latents_of(n: int) -> np.ndarray:
    """Random latents (n, zdim) float32."""
    return np.random.default_rng(n).standard_normal((n, ZDIM)).astype(np.float32)


def decode_all(of: Field, n: int) -> None:
    """Decode n volumes, one after the other."""
    exhaust(of.volumes(latents_of(n)))


def as_arrays(of: Field, n: int) -> Iterator[Any]:
    """The same, as arrays where the device computes."""
    return (backend.as_array(volume.float()) for volume in of.volumes(latents_of(n)))


def relative(found: Any, wanted: Any) -> float:
    """Relative L2 error of arrays or tensors."""
    return float(((found - wanted) ** 2).sum() ** 0.5 / (wanted**2).sum() ** 0.5)


def minutes_exact(device: str) -> float:
    """Minutes in which all particles are to be embedded exactly, by the card."""
    faster = device != "cpu" and "H200" in torch.cuda.get_device_name(device)
    return 45 if faster else 60


# -- sections


def matrix_rate(check: Check) -> None:
    """The card's own rate in each precision, for a square product and one of the decode's shape."""
    n, width = check.size.matrix, check.size.width
    for name in check.dtypes:
        if name == "float16x3":
            continue
        dtype = getattr(torch, "float32" if name == "tf32" else name)
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        for m, k in ((n, n), (8 * n, width)):
            left = torch.randn((m, k), device=check.device).to(dtype)
            right = torch.randn((k, k), device=check.device).to(dtype)
            out = torch.empty((m, k), dtype=dtype, device=check.device)
            seconds = check.seconds(partial(torch.mm, left, right, out=out), 9)
            rate = 2 * m * k * k / seconds / 1e12
            check.add(f"{name}, ({m}, {k}) x ({k}, {k})", rate, "TFLOP/s")
            check.matrix_tflops[name] = max(check.matrix_tflops.get(name, 0), rate)
    check.matrix_tflops["float16x3"] = check.matrix_tflops["float16"] / 3


def correctness(check: Check) -> None:
    """Volumes of each precision against float64 on the CPU."""
    latents = latents_of(3)
    for width in sorted({32, check.size.width}):
        decoder = random_decoder(check.size.check_box, width)
        exact = Field(decoder, dtype="float64").decode(latents).numpy()
        for dtype in check.dtypes:
            found = Field(decoder, check.device, dtype).decode(latents).cpu().numpy()
            error = max(map(relative, found, exact))
            name = f"{dtype}, box {decoder.box_size}, 3 x {width}"
            check.add(name, error, "relative L2", ERRORS[dtype])


def decoding(check: Check) -> None:
    """Volumes a second, and what part of the matrix rate that is."""
    n = check.size.volumes
    for box in check.size.boxes:
        decoder = random_decoder(box, check.size.width)
        tflop = decoder.lattice().n_points * decoder.flops_per_point / 1e12
        for dtype in reversed(check.dtypes):
            if check.late:
                return
            work = partial(decode_all, Field(decoder, check.device, dtype), n)
            seconds = check.time(f"box {box}, {dtype}: a volume", work, 3, n)
            wanted = FRACTION if dtype in ("bfloat16", "float16") and box == 128 else None
            fraction = tflop / seconds / check.matrix_tflops[dtype]
            check.add(f"box {box}, {dtype}: of the matrix rate", fraction, "fraction", wanted)


def blocks(check: Check) -> None:
    """The decode with other numbers of activations at once, and of latents among them.

    What the field takes is the first row: the largest power of two that the card's cache holds.
    """
    width = check.size.width
    check.add("chosen: activations", check.field().block_rows() * width, "")
    if check.device != "cpu":
        check.add("the card's cache", module.cache_bytes(check.device) / 2**20, "MiB")
    choose, together = module.device_activations, module.LATENTS_TOGETHER
    try:
        for latents in (together, 1, 8):
            for exponent in (22, 23, 24, 25, 26, 27, 28) if latents == together else (23, 24):
                if check.late:
                    return
                module.device_activations = partial(_so_many, 2**exponent)
                module.LATENTS_TOGETHER = latents
                work = partial(decode_all, check.field(), 8)
                what = f"2^{exponent} activations of {latents} latents: a volume"
                check.time(what, work, 3, 8)
    finally:
        module.device_activations, module.LATENTS_TOGETHER = choose, together


def _so_many(activations: int, *_: int) -> int:
    return activations


def beside_products(check: Check) -> None:
    """What lies beside a block's products: by our kernels, by torch, and what memory allows."""
    rows, width, n = 8 * check.size.matrix, check.size.width, 4
    parts = torch.randn((rows // n, width), device=check.device)
    codes = torch.randn((n, width), device=check.device)
    out = torch.empty((rows, width), dtype=torch.float16, device=check.device)
    split = torch.empty((rows, 3 * width), dtype=torch.float16, device=check.device)
    sums = torch.randn((rows, width), device=check.device)
    weight = torch.randn((2, width), device=check.device)
    values, bias = torch.empty((n, rows // n, 2), device=check.device), weight[:, 0].contiguous()

    def by_torch() -> None:
        torch.add(parts, codes[:, None], out=out.view(n, rows // n, width))
        out.relu_()

    def last_by_torch() -> None:
        found = weight.half() @ out.T
        values.copy_((found + bias[:, None]).T.view(values.shape))

    check.time(f"first layer of {rows} rows, torch", by_torch, 9, 1)
    check.time("last layer, torch", last_by_torch, 9, 1)
    wanted = out.clone()
    kernels = kernels_of(check.device)
    if check.device != "cpu":
        # without them decoding is right and slower: no Triton, or no C compiler
        check.add("kernels that do not run", kernels is None, "", 0)
        copy = check.time("copy of as many float32", partial(sums.clone().copy_, sums), 9, 1)
        check.add("bandwidth", 8 * sums.numel() / copy / 1e12, "TB/s")
    if kernels is None:
        return
    check.time("first layer, kernel", partial(kernels.activate, parts, codes, out), 9, 1)
    check.add("first layer unlike torch's", relative(out.float(), wanted.float()), "", 1e-5)
    check.time("last layer, kernel", partial(kernels.outputs, out, weight, bias, values), 9, 1)
    exact = out.double() @ weight.double().T + bias
    error = relative(values.view(rows, 2).double(), exact)
    check.add("last layer against float64", error, "relative L2", 1e-6)
    halve = partial(kernels.activate, sums, codes[:1], split, 0.0, 1.0, SPLIT_BY)
    check.time("split of sums, kernel", halve, 9, 1)
    high, again, low = split.double().split(width, 1)
    error = relative(high + low / SPLIT_BY, (sums + codes[0]).relu().double())
    check.add("split against float32", error + float((high != again).any()), "relative L2", 3e-7)


def precisions(check: Check) -> None:
    """What ``--dtype auto`` measures and would take, on random weights."""
    box = check.size.boxes[0]
    decoder = random_decoder(box, check.size.width)
    work = partial(precision.measure, decoder, latents_of(12), box, check.device)
    found = check.once("all precisions", work)
    for dtype, one in found.items():
        seconds, error = one["seconds_a_volume"], one["error"]
        check.add(f"{dtype}: a volume's field", seconds * 1e3, "ms")
        check.add(f"{dtype}: in coordinates", math.nan if error is None else error, "of the spread")
    chosen = precision.fastest(found, 1e-3)
    print(f"taken: {chosen}", flush=True)
    check.add(f"float32 over what is taken, {chosen}", found["float32"]["seconds_a_volume"]
              / found[chosen]["seconds_a_volume"], "times")  # fmt: skip


def overflow(check: Check) -> None:
    """Values beyond float16's largest number: they must not come out as finite ones, but wrong."""
    box = check.size.check_box
    decoder = random_decoder(box, check.size.width)
    for dtype in ("float16", "float16x3"):
        if dtype not in check.dtypes:
            continue
        for layer in range(4):
            weights = list(decoder.weights)
            weights[layer] = weights[layer] * 1e6
            broken = dataclasses.replace(decoder, weights=tuple(weights))
            found = Field(broken, check.device, dtype).decode(latents_of(1))
            exact = Field(broken, dtype="float64").decode(latents_of(1))
            wrong = found.isfinite().all() and relative(found.cpu(), exact) > ERRORS[dtype]
            check.add(f"{dtype}, layer {layer}: finite and wrong", float(wrong), "", 0)


def epilogue(check: Check) -> None:
    """A hidden layer with its activation in the product's epilogue, beside it, and in a graph."""
    rows, width = 8 * check.size.matrix, check.size.width
    x = torch.randn((rows, width), device=check.device).bfloat16()
    weight = torch.randn((width, width), device=check.device).bfloat16()
    bias, out = torch.randn(width, device=check.device).bfloat16(), torch.empty_like(x)

    def fused() -> None:
        torch._addmm_activation(bias, x, weight, out=out)

    def apart() -> None:
        torch.addmm(bias, x, weight, out=out).relu_()

    def chain() -> None:
        for _ in range(8):
            fused()

    check.time("activation in the epilogue", fused, 9, 1)
    check.time("activation apart", apart, 9, 1)
    check.time("activation 8 layers", chain, 9, 1)
    if check.device != "cpu":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            chain()
        check.time("8 layers as a graph", graph.replay, 9, 1)


def exact(check: Check) -> None:
    """Embedding by each particle's own volume."""
    box, n = check.size.boxes[0], 4 * check.size.volumes
    rng, n_voxels = np.random.default_rng(0), min(check.size.voxels, box**3)
    inside = np.sort(rng.choice(box**3, n_voxels, replace=False))
    vectors = rng.standard_normal((check.size.components, n_voxels)).astype(np.float32)
    mask = Mask((box,) * 3, check.array(inside))
    frame = Frame(check.array(np.zeros(n_voxels)), check.array(vectors), mask)

    def embed(some: Field) -> None:
        assert np.isfinite(frame.project(as_arrays(some, n), n)).all()

    for dtype in reversed(check.dtypes):
        if check.late:
            return
        work = partial(embed, check.field(dtype))
        seconds = check.exact_seconds[dtype] = check.time(f"{dtype}: a particle", work, 3, n)
        wanted = minutes_exact(check.device) if dtype == "bfloat16" else None
        minutes = seconds * PARTICLES / 60
        check.add(f"{dtype}: {PARTICLES} particles", minutes, "minutes", wanted)


def map_of_any_values(
    points: np.ndarray,
    n_hidden: int,
    width: int,
    r: int = 20,
    device: str = "cpu",
    dtype: Any = np.float64,
) -> ReducedMap:
    """A map of the right shapes: what it costs does not depend on its values."""
    n_values = 2 * len(points)
    n_features = n_values + n_hidden * width
    shapes: tuple[Any, ...] = ((r, n_values), n_values, r, n_values)
    model = FieldModel(*(backend.to_device(np.ones(shape, dtype), device) for shape in shapes))
    ones, zeros = torch.ones((n_features, r), device=device), torch.zeros(r, device=device)
    tensors = (torch.zeros(n_features, device=device), ones, zeros)
    return ReducedMap(points, n_hidden, *tensors, model, model, Calibration(1.0, 1.0, 1.0))


def reduced(check: Check) -> None:
    """Embedding from a few points: the rate, and the parts of building a map."""
    size, dtype, rng = check.size, "bfloat16", np.random.default_rng(1)
    some, n = check.field(dtype), size.training
    coordinates = some.decoder.lattice().coordinates
    points = np.ascontiguousarray(coordinates[rng.choice(len(coordinates), size.points)])
    n_hidden = max(1, min(size.points, 2**18 // size.width))
    by_points = map_of_any_values(
        points, n_hidden, size.width, size.components, check.device, np.float32
    )
    latents = latents_of(4096 if size.width > 100 else 64)
    for name in (name for name in ("float32", "tf32", dtype) if name in check.dtypes):
        work = partial(by_points.evaluate, check.field(name), latents)
        what = f"{name}, {size.points} points: a particle"
        embedding = check.time(what, work, 3, len(latents)) * PARTICLES
    latents = latents_of(n)

    def kernel() -> torch.Tensor:
        total = torch.zeros((n, n), device=check.device)
        step = max(1, 2**30 // (n * size.width))
        for start in range(0, len(points), step):
            part = points[start : start + step]
            rows = some.features(latents, part, len(part) if start < n_hidden else 0)
            total += (rows - rows.mean(0)).float() @ (rows - rows.mean(0)).float().T
        return total

    setup = check.time(f"kernel of {n} volumes", kernel, 1)
    targets = check.array(rng.standard_normal((n, size.components)))
    gram = check.array(kernel().double().cpu().numpy())
    setup += 5 * check.time(f"ridge regression of {n}", partial(fit_ridge, gram, targets), 1)
    decoded = 100 + n - n // 3  # held out, and beyond the sketch
    setup += decoded * check.exact_seconds.get(dtype, 0.0)
    check.add(f"setup, {decoded} volumes decoded", setup, "s")
    minutes = (embedding + setup) / 60
    check.add(f"{PARTICLES} particles with setup", minutes, "minutes", MINUTES_REDUCED)


def landscape(check: Check) -> None:
    """A whole run of the bundled model on the device, against the same on the CPU."""
    try:
        from scapedist.landscape import Run
        from scapedist.workers import Serial
    except ImportError as missing:
        print(f"No run is made: {missing}", flush=True)
        return
    model, full, found = ROOT / "scapedist" / "data" / "adk", check.size.width > 100, []
    n, box, tolerance = (100, 24, 0.01) if full else (12, 8, 0.5)
    arrays = ["sketch/particle", "volumes/0", "sketch/coordinates", "states/label"]
    arrays += ["embedding/reduced/coordinates"] if full else []
    with tempfile.TemporaryDirectory() as place:
        for number, device in enumerate(("cpu", check.device)):
            workers = Serial(device)
            run = Run.create(model, 14, Path(place) / str(number))
            run.sketch(workers, size=n, quality_groups=2).generate(
                workers, box_size=box, dtype="float32"
            )
            run.mask().pca(workers, components=5).states(workers, states=4)
            if full:
                embed = partial(run.embed, workers, tolerance=tolerance, strict=False)
                check.once(f"20,000 particles embedded, {device}", embed)
            found.append([run.store.read(name) for name in arrays])
    for name, ours, theirs in zip(arrays, found[1], found[0], strict=True):
        if ours.dtype.kind == "i":
            check.add(f"{name} unlike the CPU's", (ours != theirs).sum(), f"of {n}", 0)
        else:
            wanted = tolerance if name.startswith("embedding") else 1e-4
            check.add(f"{name} against the CPU's", relative(ours, theirs), "relative L2", wanted)


def gram(check: Check) -> None:
    """The Gram matrix and its leading eigenpairs, against float64 on the CPU for a few rows."""
    n, p = check.size.gram, check.size.voxels
    rng = np.random.default_rng(2)
    few = (rng.standard_normal((12, p)) * 0.1 + 5).astype(np.float32)
    held = check.array(few)
    centered = few.astype(np.float64) - few.mean(0, dtype=np.float64)
    wanted = centered @ centered.T
    error = np.abs(gram_matrix(lambda start, stop: held[start:stop], 12, 5).matrix - wanted).max()
    check.add("error against float64", error / np.abs(wanted).max(), "relative", 1e-10)
    xp = backend.array_module(held)
    many = xp.asarray(np.repeat(few, -(-n // 12), 0)[:n])
    many += check.array(rng.standard_normal((n, 1)).astype(np.float32)) * many[:, :1]

    def multiply() -> None:
        gram_matrix(lambda start, stop: many[start:stop], n, max(1, n // 2))

    seconds = check.time(f"{n} volumes of {p} voxels", multiply, 1)
    check.add("rate in float64", n * n * p * 1.5 / seconds / 1e12, "TFLOP/s")
    matrix = check.array(rng.standard_normal((n, 50)))
    check.time(f"20 eigenpairs of {n}", partial(leading_eigenpairs, matrix @ matrix.T, 20), 1)


def linkage(check: Check) -> None:
    """Our chain against SciPy for a few hundred, and its time for many."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import pdist, squareform

    few = np.random.default_rng(3).standard_normal((400, 10))
    for method in ("average", "ward", "complete", "single"):
        distances = pdist(few)
        wanted = hierarchy.linkage(distances, method)
        found = nearest_neighbor_chain(check.array(squareform(distances) ** 2), method)
        differ = (found[:, [0, 1, 3]] != wanted[:, [0, 1, 3]]).any(1).sum()
        check.add(f"{method}: merges unlike SciPy's", differ, "of 399", 0)
    xp = backend.array_module(check.array(few))

    def join(points: Any, method: str) -> None:
        nearest_neighbor_chain(into_squared_distances(points @ points.T), method)

    for n in check.size.linkages:
        for method in ("average", "ward") if n < 50_000 else ("average",):
            if time.perf_counter() > check.deadline - n / 1500:
                continue
            if 1.1 * 8 * n * n > free_bytes(check.device):
                check.add(f"{method}: {n} volumes do not fit, missing", 8 * n * n, "B")
                continue
            points = xp.asarray(np.random.default_rng(4).standard_normal((n, 10)))
            check.once(f"{method}: {n} volumes", partial(join, points, method))
            check.release()


def overlap(check: Check) -> None:
    """Volumes decoded and written at once, against each alone."""
    some, n, kind = check.field(), 4 * check.size.volumes, "Zarr"
    with tempfile.TemporaryDirectory() as place:
        try:
            import zarr

            from scapedist.store import write_row

            shape = (n, *(some.decoder.box_size,) * 3)
            about: Row = {"shape": shape, "chunks": (1, *shape[1:]), "dtype": "float32"}
            about |= {"compressors": None, "config": {"write_empty_chunks": True}}
            write = partial(write_row, zarr.create_array(f"{place}/v", **about))
        except ImportError:
            kind, write = "plain files", partial(_write_file, place)

        def both(volumes: Iterator[Any]) -> None:
            with backend.Outbox(4) as outbox:
                for number, volume in enumerate(volumes):
                    outbox.put((volume,), partial(write, number))
                outbox.results()

        one = next(as_arrays(some, n))
        alone = check.time(f"decode {n} volumes", partial(decode_all, some, n), 3)
        written = check.time(f"copy and write them, {kind}", lambda: both(iter([one] * n)), 3)
        together = check.time("both at once", lambda: both(as_arrays(some, n)), 3)
    check.add("of the slower one alone", max(alone, written) / together, "fraction", 0.9)


def _write_file(place: str, number: int, values: np.ndarray) -> None:
    Path(f"{place}/{number}").write_bytes(values.tobytes())


def memory(check: Check) -> None:
    """Decoding where memory is short: blocks are halved and the volumes are the same."""
    if check.device == "cpu":
        return
    generous = check.field("float32")
    wanted = next(generous.volumes(latents_of(1)))
    torch.cuda.reset_peak_memory_stats()
    decode_all(check.field(), 8)
    check.add("peak of decoding", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    decoder = generous.decoder
    del generous
    check.release()
    held = torch.cuda.memory_allocated() + 0.75 * 2**30
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(held / total)
    try:
        tight = Field(decoder, check.device, memory_bytes=16 * 2**30)
        found = next(tight.volumes(latents_of(1)))
        check.add("halved from 16 GiB to", (tight.memory_bytes or 0) / 2**30, "GiB", 8)
        check.add("error after it", relative(found, wanted), "relative L2", 1e-6)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def whole(name: str) -> Callable[[Check], None]:
    """The section of that name in gpu_whole.py, where what it needs is installed."""

    def section(check: Check) -> None:
        try:
            import gpu_whole
        except ImportError as missing:
            print(f"left out: {missing}", flush=True)
            return
        try:
            getattr(gpu_whole, name)(check)
        except ImportError as missing:
            print(f"not all of it: {missing}", flush=True)

    return section


SECTIONS = {
    "matrix rate": matrix_rate,
    "error": correctness,
    "decode": decoding,
    "exact": exact,
    "reduced": reduced,
    "overlap": overlap,
    "run": landscape,
    "gram": gram,
    "linkage": linkage,
    "memory": memory,
    "beside products": beside_products,
    "precisions": precisions,
    "overflow": overflow,
    "hidden layer": epilogue,
    "blocks": blocks,
    "cards": whole("cards"),
    "stages": whole("stages"),
    "workers": whole("workers"),
    "reading": whole("reading"),
    "scaling": whole("scaling"),
    "MLP": whole("training"),
    "cuML": whole("estimators"),
}


def run(size: str, device: str | None = None, seconds: float = 420) -> Row:
    """Rows and failures of all sections; none begins anything new after some seconds."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check = Check(SIZES[size], device, time.perf_counter() + seconds)
    failures: list[Row] = []
    for name, section in SECTIONS.items():
        start, check.section = time.perf_counter(), name
        torch.set_float32_matmul_precision("highest")
        if check.late:
            failures.append({"section": name, "error": "no time was left"})
            continue
        try:
            section(check)
        except Exception as error:  # the others are worth having all the same
            failures.append({"section": name, "error": f"{type(error).__name__}: {error}"})
            traceback.print_exc()
        check.release()
        print(f"-- {name}: {time.perf_counter() - start:.1f} s", flush=True)
    return {"device": device, "particles": PARTICLES, "rows": check.rows, "failures": failures}


if __name__ == "__main__":
    found = harness.main("gpu_check")
    missed = [row for row in found["rows"] if row["verdict"] == "MISSED"]
    sys.exit(1 if found["failures"] or missed else 0)
