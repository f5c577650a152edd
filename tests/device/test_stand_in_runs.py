"""Whole runs and every command on a stand-in for GPUs: the CPU's results, by workers alone."""

import inspect
import sys

import cupy_stand_in
import gpu_check
import numpy as np
import pytest
import torch
from cupy_stand_in import StandInGpu
from random_model import copy_with_particles

from scapedist import cli, landscape
from scapedist.landscape import Run
from scapedist.model.field import Field
from scapedist.particles import place, population
from scapedist.plan import LinkagePlan
from scapedist.stages import states
from scapedist.store import RunStore

EXACT = 2e-5
"""Largest difference relative to the largest value: float32 in another order of operations."""


@pytest.fixture(scope="module")
def few(adk_workdir, tmp_path_factory):
    """The bundled model with 300 of its particles."""
    place = tmp_path_factory.mktemp("few") / "model"
    return copy_with_particles(adk_workdir, 14, np.arange(300), place)


@pytest.fixture
def pool(gpu):
    return StandInGpu()


def compare(ours, theirs, left_out=(), tolerance=EXACT):
    """Refuse where an array of two runs differs beyond rounding and signs."""
    ours, theirs = RunStore(ours.directory), RunStore(theirs.directory)
    names = set(theirs.array_names())
    assert set(ours.array_names()) == names
    for name in sorted(names):
        if name.startswith(tuple(left_out)):
            continue
        a, b = ours.read(name), theirs.read(name)
        if a.dtype.kind in "iub":
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1e-30), err_msg=name
            )


def both(few, tmp_path, pool, *stages):
    """The same stages done by a GPU's worker and by the CPU."""
    made = []
    for name, workers in (("gpu", pool), ("cpu", None)):
        run = Run.create(few, 14, tmp_path / name)
        for stage, options in stages:
            done = getattr(run, stage)
            done(**options) if stage == "mask" else done(workers, **options)
        made.append(run)
    return made


SKETCH = ("sketch", {"size": 30, "quality_groups": 2})
WHOLE = ("generate", {"box_size": 12})
MASKED = (
    "generate",
    {"box_size": 12, "store": "masked", "pilot_volumes": 6, "flip": True, "cosine_edge": 10.0},
)
PCA = ("pca", {"components": 3})


def test_a_whole_run(few, tmp_path, pool):
    steps = (SKETCH, WHOLE, ("mask", {}), PCA, ("states", {"states": 3}))
    compare(*both(few, tmp_path, pool, *steps, ("embed", {"method": "exact"})))


def test_a_masked_store_soft_and_clipped(few, tmp_path, pool):
    options = {"components": 3, "soft_mask": True, "clip_negative": True}
    steps = (SKETCH, MASKED, ("mask", {}), ("pca", options), ("states", {"states": 3}))
    compare(*both(few, tmp_path, pool, *steps))


@pytest.mark.parametrize("linkage", ["average", "ward", "complete", "single", "kmeans", "hdbscan"])
def test_every_linkage(few, tmp_path, pool, linkage):
    steps = (SKETCH, WHOLE, ("mask", {}), PCA, ("states", {"states": 3, "linkage": linkage}))
    compare(*both(few, tmp_path, pool, *steps))


@pytest.mark.parametrize(
    ("kind", "linkage"), [("vectors", "ward"), ("two-level", "average"), ("two-level", "single")]
)
@pytest.mark.parametrize("solver", ["gram", "iteration"])
def test_linkage_of_more_volumes_than_fit(few, tmp_path, pool, monkeypatch, kind, linkage, solver):
    monkeypatch.setattr(states, "plan_linkage", lambda *_: LinkagePlan(kind, 10, 0))
    pca = ("pca", {"components": 3, "solver": solver})
    steps = (SKETCH, WHOLE, ("mask", {}), pca, ("states", {"states": 3, "linkage": linkage}))
    compare(*both(few, tmp_path, pool, *steps))


def test_a_gram_matrix_that_the_card_cannot_hold(few, tmp_path, pool, monkeypatch):
    """This process, which has it in memory, finds its eigenpairs; Ward reads it in parts."""
    ours, theirs = both(few, tmp_path, pool, SKETCH, WHOLE, ("mask", {}))
    monkeypatch.setattr(states, "plan_linkage", lambda *_: LinkagePlan("vectors", 0, 0))
    # the matrix of 30 volumes takes 7,200 bytes, more than the share of these
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10_000, 10_000))
    for run, workers in ((ours, pool), (theirs, None)):
        run.pca(workers, components=3).states(workers, states=3, linkage="ward")
    compare(ours, theirs)


def test_components_of_all_particles(few, tmp_path, pool):
    steps = (SKETCH, WHOLE, ("mask", {}), PCA)
    ours, theirs = both(few, tmp_path, pool, *steps)
    for run, workers in ((ours, pool), (theirs, None)):
        assert "300 particles" in run.cost_of_all_particles(workers or pool, components=2)
        run.pca(workers, components=2, all_particles=True)
    compare(ours, theirs)


def test_embeddings(few, tmp_path, pool, monkeypatch):
    """Each of them, their comparison, what is missed, and the population, all by workers."""
    monkeypatch.setattr(place, "FEW_PAIRS", 0)
    monkeypatch.setattr(population, "FEW_NUMBERS", 0)
    steps = (SKETCH, WHOLE, ("mask", {}), PCA, ("states", {"states": 3}))
    ours, theirs = both(few, tmp_path, pool, *steps)
    for run, workers in ((ours, pool), (theirs, None)):
        run.embed(workers, method="reduced", strict=False, tolerance=0.02, error_bars=True)
        run.embed(workers, method="mlp")
        run.embed(workers, method="exact", box_size=8)
        run.embed(workers, method="exact")
        run.crosscheck(workers, sample=20)
        run.population(workers, groups=2)
    approximate = ("embedding/map", "embedding/coarse", "embedding/reduced", "embedding/mlp")
    # a particle on the edge of a cell may be counted in the one beside
    compare(ours, theirs, (*approximate, "crosscheck", "population/density"))
    cells = [run.store.read("population/density") for run in (ours, theirs)]
    np.testing.assert_allclose(cells[0].sum((1, 2)), cells[1].sum((1, 2)), rtol=1e-3)
    a, b = (r.store.read("embedding/reduced/coordinates") for r in (ours, theirs))
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_faster_precisions(few, tmp_path, pool, dtype):
    run = Run.create(few, 14, tmp_path / "run")
    run.sketch(pool, size=10, quality_groups=0).generate(pool, box_size=12, dtype=dtype)
    error = run.store.stages["generate"]["results"]["relative_error_against_float32"]
    assert error < 0.05


def test_a_batch_is_not_waited_for(few, tmp_path, pool, monkeypatch):
    """While volumes are decoded and written nothing waits: the threads that write do."""
    from scapedist.stages import write_volumes

    found = []
    write_batch = write_volumes.write_batch

    def counted(writing, task):
        with cupy_stand_in.waits() as waited:
            done = write_batch(writing, task)
        found.append(waited.n)
        return done

    monkeypatch.setattr("scapedist.stages.volumes.write_batch", counted)
    monkeypatch.setattr(cupy_stand_in, "_sent", lambda value: value)
    run = Run.create(few, 14, tmp_path / "run").sketch(pool, size=20, quality_groups=0)
    run.generate(pool, box_size=12, store="masked", pilot_volumes=6)
    assert found == [0] * len(found)
    assert found


def test_few_latents_are_evaluated_before_the_first_volume_is_there(adk, gpu, monkeypatch):
    """So that it is copied and written while others are evaluated; more share a first layer."""
    evaluated, values = [], Field._values

    def counted(self, latents, lattice):
        evaluated.append(len(latents))
        return values(self, latents, lattice)

    monkeypatch.setattr(Field, "_values", counted)
    for kept, together in ((True, 8), (False, 64)):
        evaluated.clear()
        monkeypatch.setattr(Field, "_keeps", lambda *_, kept=kept: kept)
        with cupy_stand_in.on_device():
            next(Field(adk.decoder, "cuda").volumes(adk.latents[:100], 12))
        assert evaluated == [together]


# -- the command line


@pytest.fixture
def command(monkeypatch, gpu):
    """Call a command whose workers have stand-ins for GPUs; whether it opened any."""
    opened = []

    def open_workers(n_workers=None, *, gpus=None, memory_limit=None, **options):
        assert gpus == "all", (n_workers, options)
        opened.append(StandInGpu(memory_limit=memory_limit))
        return opened[-1]

    monkeypatch.setattr(landscape, "open_workers", open_workers)

    def call(*arguments):
        opened.clear()
        monkeypatch.setattr(sys, "argv", ["scapedist", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return bool(opened)

    return call


def test_every_command_that_has_workers(few, tmp_path, command, capsys):
    """One after the other on one run; none touches a device in the process that calls."""
    run, gpus = tmp_path / "run", ("--gpus", "all")
    size = ("--sketch-size", 20, "--box-size", 12, "--components", 3, "--states", 3)
    whole = ("run", few, 14, "-o", run, *size, "--embed", "reduced", "--tolerance", 0.02)
    assert command(*whole, "--umap", *gpus)
    steps = tmp_path / "in_steps"
    assert not command("sketch", few, 14, "-o", steps, "--sketch-size", 10)
    assert command("generate", steps, "--box-size", 12, *gpus)
    assert not command("mask", run, "--dilate", 4)
    assert command("pca", run, "--components", 3, *gpus)
    assert command("states", run, "--states", 3, "--linkage", "kmeans", *gpus)
    assert command("embed", run, "--method", "mlp", *gpus)
    assert command("embed", run, "--method", "exact", "--grow-sketch", *gpus)
    assert command("population", run, "--groups", 2, *gpus)
    assert command("crosscheck", run, "--sample", 10, *gpus)
    assert command("pca", run, "--components", 2, "--all-particles", *gpus)
    assert command("states", run, "--states", 3, *gpus)
    assert not command("report", run)
    assert not command("verify", run)
    assert "volumes sound" in capsys.readouterr().out


def test_every_command_is_tried_or_has_no_workers():
    """A new command with workers belongs into the test before."""
    with_workers = {
        name for name in ("run", "generate", "pca", "states", "embed", "population", "crosscheck")
    }
    found = set()
    for info in cli.app.registered_commands:
        options = inspect.signature(info.callback).parameters
        if "gpus" in options:
            found.add(info.name or info.callback.__name__)
    assert found - {"demo"} == with_workers


# -- the GPU check


SECTIONS = (
    "error", "decode", "exact", "reduced", "overlap", "run", "gram", "linkage", "precisions",
    "overflow", "stages", "reading", "MLP", "cuML",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # cryoDRGN's
def test_the_gpu_check(gpu, monkeypatch):
    """It runs through before there is a card; what it says of speed is the CPU's."""
    rate = gpu_check.SECTIONS["matrix rate"]
    sections = {name: gpu_check.SECTIONS[name] for name in SECTIONS}
    monkeypatch.setattr(gpu_check, "SECTIONS", {"matrix rate": rate} | sections)
    with cupy_stand_in.on_device():
        found = gpu_check.run("tiny", "cuda")
    assert found["failures"] == []
    assert {row["section"] for row in found["rows"]} == {"matrix rate", *SECTIONS}
    judged = [row for row in found["rows"] if row["verdict"] and row["unit"] != "fraction"]
    assert len(judged) > 30
    assert [row for row in judged if row["verdict"] != "ok"] == []
