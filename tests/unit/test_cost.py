"""What a run will take, and what is refused before it begins."""

import re

import numpy as np
import pytest
from random_model import copy_with_particles

from scapedist.analysis.sketch import METHODS
from scapedist.errors import InputError, ResourceError
from scapedist.files.mrc import write_map
from scapedist.landscape import analyze, cost, speed
from scapedist.particles.fit_reduced import further_volumes
from scapedist.particles.memory import MAP_MATRICES, most_training, particle_bytes
from scapedist.plan import (
    GIB,
    IMPORT_BYTES,
    MAIN_BYTES,
    Budget,
    parse_bytes,
    plan_components,
    plan_linkage,
)
from scapedist.settings import by_stage

MIB = 2**20


def test_the_gram_matrix_where_it_fits():
    needed = plan_components(20_000, 20_000, 20, Budget(4 * GIB))
    assert needed.solver == "gram"
    assert needed.here_bytes > 8 * 20_000**2
    beyond = plan_components(20_000, 20_000, 20, Budget(3 * GIB))
    assert beyond.solver == "iteration"
    assert beyond.here_bytes < needed.here_bytes
    assert plan_components(100_000, 160_000, 20, Budget(8 * GIB)).solver == "iteration"


def test_little_memory_means_fewer_columns():
    rich = plan_components(10_000, 160_000, 20, Budget(8 * GIB), solver="iteration")
    poor = plan_components(10_000, 160_000, 20, Budget(1 * GIB), solver="iteration")
    assert poor.columns < rich.columns
    assert poor.here_bytes <= GIB
    assert poor.columns >= 20 + 2 * 32


@pytest.mark.parametrize(("solver", "n"), [("auto", 5000), ("gram", 5000), ("iteration", 500)])
def test_components_that_do_not_fit_name_what_would(solver, n):
    with pytest.raises(ResourceError, match=f"Components of {n} volumes") as caught:
        plan_components(n, 160_000, 20, Budget(400 * MIB), solver=solver)
    named = parse_bytes(re.findall(r"--memory-limit (\S+) or more", str(caught.value))[0])
    assert plan_components(n, 160_000, 20, Budget(named), solver=solver).here_bytes <= named


@pytest.mark.parametrize(
    ("n", "method", "memory", "kind"),
    [
        (20_000, "average", 4 * GIB, "distances"),
        (20_000, "ward", 4 * GIB, "distances"),
        (50_000, "ward", 4 * GIB, "vectors"),
        (50_000, "average", 4 * GIB, "two-level"),
        (100_000, "complete", 4 * GIB, "two-level"),
        (1000, "kmeans", GIB, "vectors"),
        (100_000, "hdbscan", 4 * GIB, "vectors"),
    ],
)
def test_how_volumes_are_joined(n, method, memory, kind):
    plan = plan_linkage(n, method, Budget(memory))
    assert plan.kind == kind
    assert plan.here_bytes <= memory
    assert (plan.micro_states > 0) == (kind == "two-level")


@pytest.mark.parametrize("method", ["average", "ward", "single", "hdbscan"])
def test_a_sketch_that_cannot_be_joined_names_one_that_can(method):
    memory = IMPORT_BYTES + 300 * MIB
    with pytest.raises(ResourceError, match="Joining 200000 volumes") as caught:
        plan_linkage(200_000, method, Budget(memory))
    (most,) = re.findall(r"--sketch-size (\d+) or less", str(caught.value))
    assert plan_linkage(int(most), method, Budget(memory)).here_bytes <= memory
    with pytest.raises(ResourceError):
        plan_linkage(2 * int(most) + 10_000, method, Budget(memory))
    named = parse_bytes(re.findall(r"--memory-limit (\S+) or more", str(caught.value))[0])
    assert plan_linkage(200_000, method, Budget(named)).here_bytes <= named


def test_such_a_run_is_refused_before_any_work(adk_workdir, tmp_path):
    with pytest.raises(ResourceError, match="Joining 15000 volumes"):
        analyze(
            adk_workdir, 14, tmp_path / "run", n_workers=1, memory_limit=620 * MIB,
            size=15_000, linkage="ward",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small_for_all_is_refused(adk_workdir, monkeypatch):
    asked = by_stage({"size": 5000})
    made = cost.cost_of_run(adk_workdir, 14, None, 1, None, asked, "none")
    assert made.disk_bytes > 5000 * 48**3 * 4 + 8 * 5000**2
    monkeypatch.setattr(cost, "_free_bytes", lambda output: made.disk_bytes - 20 * MIB)
    with pytest.raises(ResourceError, match="The volumes must fit on the disk"):
        cost.cost_of_run(adk_workdir, 14, None, 1, None, asked, "none")


def test_more_volumes_cost_more(adk_workdir):
    few, many = (
        cost.cost_of_run(adk_workdir, 14, None, 2, GIB, by_stage({"size": n}))
        for n in (200, 20_000)
    )
    for stage in ("generate", "mask", "pca", "states"):
        assert many.stages[stage].seconds > few.stages[stage].seconds
    assert (few.solver, few.linkage) == ("gram", "distances")
    assert (many.solver, many.linkage) == ("iteration", "two-level")
    assert many.here_bytes <= GIB
    assert few.voxels == pytest.approx(4244, rel=0.4)
    assert few.whole_seconds > few.exact_seconds > 0


def test_a_sketch_without_k_means_costs_less(adk):
    times = {method: cost.sketch_seconds(adk.latents, 500, method) for method in METHODS}
    assert times["kmeans"] > 5 * max(times["uniform"], times["geometric"]) > 0


@pytest.fixture
def unmeasured(monkeypatch):
    """Plans that take a volume to be decoded in a millisecond."""
    monkeypatch.setattr(speed, "seconds_of", lambda call, at_least: 1e-3)


@pytest.mark.usefixtures("unmeasured")
def test_a_plan_takes_the_mask(adk_workdir, tmp_path):
    def voxels(**options):
        chosen = by_stage({"size": 20, "box_size": 16} | options)
        return cost.cost_of_run(adk_workdir, 14, None, 1, None, chosen, "none").voxels

    usual = voxels()
    assert voxels(dilate=20.0) > usual
    assert voxels(threshold=1e-3) > usual > voxels(min_fraction=1.0)
    assert voxels(pixel_size=1.0) > usual  # of smaller voxels the same length has more
    assert voxels(invert=True) != usual
    weights = np.zeros((16, 16, 16), np.float32)
    weights[3:8, 3:8, 3:8] = 0.5
    write_map(tmp_path / "mask.mrc", weights, 7.5)
    assert voxels(mask=tmp_path / "mask.mrc") == 125
    write_map(tmp_path / "mask.mrc", weights[:8, :8, :8], 7.5)
    with pytest.raises(InputError, match="A mask has the box of the volumes, 16"):
        voxels(mask=tmp_path / "mask.mrc")


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("options", "error_bars", "method"),
    [({}, False, "exact"), ({}, True, "reduced"), ({"clip_negative": True}, False, None)],
)
def test_a_plan_embeds_as_the_run_does(
    adk_workdir, tmp_path, monkeypatch, options, error_bars, method
):
    few = copy_with_particles(adk_workdir, 14, slice(60), tmp_path / "model")
    found = []
    monkeypatch.setattr(
        cost, "_embedding", lambda *given: found.append(given[1]) or cost.StageCost(0, 0, 0, 0)
    )
    chosen = by_stage({"size": 20, "box_size": 16} | options)
    cost.cost_of_run(few, 14, None, 1, None, chosen, error_bars=error_bars)
    assert found == ([method] if method else [])


@pytest.mark.parametrize(("n_particles", "least"), [(10**6, 2000), (10**5, 2600)])
def test_a_map_is_no_larger_than_its_memory(n_particles, least):
    """The process beside workers holds the map's matrices and what it knows of all particles."""
    limit = GIB
    n = most_training(Budget(limit), n_particles, 8, 500, alone=False)
    assert n >= least
    held = MAIN_BYTES + particle_bytes(n_particles, 8, 500)
    assert held + 8 * MAP_MATRICES * n**2 <= limit < held + 8 * MAP_MATRICES * (n + 1) ** 2
    assert most_training(Budget(limit), n_particles, 8, 500, alone=True) < n
    assert most_training(Budget(limit // 4), n_particles, 8, 500, alone=False) == 0


def test_a_map_takes_what_there_is_room_for():
    assert further_volumes(10**6) == [400, 800, 1600, 3200]
    assert further_volumes(10**6, 1400) == [400, 800, 1400]
    assert further_volumes(10**6, -50) == [100]  # the least, whatever the memory
    assert further_volumes(20_000) == [400, 800]
    assert further_volumes(15_000) == [400, 600]
