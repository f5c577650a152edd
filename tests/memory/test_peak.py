"""What a run takes is what its plan says, and does not grow with the sketch."""

import json
import subprocess
import sys

import pytest
from growth import write_masked_run
from random_model import copy_with_particles, write_random_model

# the high-water mark of this program: ru_maxrss would count the process that started it too
PEAK = """
import json, sys
def peak_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
"""
RUN = """
from scapedist.landscape import analyze
workdir, epoch, output, size, box_size, store = sys.argv[1:]
analyze(workdir, int(epoch), output, n_workers=1, size=int(size), box_size=int(box_size),
        store=store, states=4, embedding="none")
print(json.dumps(peak_bytes()))
"""
GENERATE = """
from scapedist.landscape import Run
from scapedist.plan import UNLIMITED
from scapedist.sources.decoded import plan_generation
from scapedist.settings import GenerateSettings
workdir, output, box_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
run = Run.create(workdir, 19, output)
run.sketch(size=10, quality_groups=1, quality_members=1)
run.generate(box_size=box_size)
plan = plan_generation(run.model.decoder, box_size, GenerateSettings(), 10, UNLIMITED)
print(json.dumps([peak_bytes(), plan.worker_bytes]))
"""
REDUCED = """
import numpy as np
from scapedist.landscape import Run
run = Run.create(sys.argv[1], 19, sys.argv[2])
run.sketch(size=100, quality_groups=0).generate().mask().pca(components=4)
run.embedder().exact_rows(np.arange(16), "")  # decoding's own peak
before = peak_bytes()
run.embed(tolerance=0.05)
built = run.store.beside["embedding/map"]["results"]
volumes = built["training_volumes"] + built["held_out"]
fields = 4 * volumes * run.model.decoder.lattice(96).n_points
print(json.dumps([peak_bytes() - before, fields]))
"""
STAGES = """
from scapedist.landscape import Run
from scapedist.plan import Budget, plan_components, plan_linkage
from scapedist.workers import Serial
place, n, p, solver, linkage, limit = sys.argv[1:]
n, p, limit = int(n), int(p), int(limit)
run = Run(place)
peaks = []
run.pca(Serial(memory_limit=limit), solver=solver)
peaks.append([peak_bytes(), plan_components(n, p, 20, Budget(limit), 1, solver=solver).here_bytes])
run.states(Serial(memory_limit=limit), linkage=linkage, states=5)
joined = plan_linkage(n, linkage, Budget(limit))
peaks.append([peak_bytes(), max(joined.here_bytes, peaks[0][1])])
print(json.dumps([peaks, joined.kind, run.store.stages["pca"]["results"]["solver"]]))
"""
WHOLE = """
from pathlib import Path
from scapedist.landscape import analyze
workdir, output, store, embedding = sys.argv[1:]
analyze(workdir, 14, output, n_workers=1, size=100, box_size=32, store=store,
        embedding=embedding)
files = [path for path in Path(output).rglob("*") if path.is_file()]
print(json.dumps([peak_bytes(), sum(path.stat().st_size for path in files)]))
"""
COST = """
from scapedist.landscape.cost import cost_of_run
workdir, store, embedding = sys.argv[1:]
chosen = {"sketch": {"size": 100}, "generate": {"store": store, "box_size": 32}}
cost = cost_of_run(workdir, 14, None, 1, None, chosen, embedding)
print(json.dumps([cost.here_bytes, cost.disk_bytes]))
"""


def run_python(code: str, *arguments: object):
    command = [sys.executable, "-c", PEAK + code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("box_size", "width"), [(32, 32), (96, 64), (128, 64)])
def test_a_worker_takes_at_most_what_was_planned(tmp_path, box_size, width):
    workdir = write_random_model(
        tmp_path / "model", box_size=box_size, layers=1, width=width, zdim=2, n_particles=40
    )
    peak, planned = run_python(GENERATE, workdir, tmp_path / "run", box_size)
    assert peak <= planned
    assert peak >= 0.4 * planned  # the plan is no wild guess


def test_peak_does_not_grow_with_the_sketch(adk_workdir, tmp_path):
    peaks = [
        run_python(RUN, adk_workdir, 14, tmp_path / str(size), size, 24, "masked")
        for size in (100, 400)
    ]
    assert peaks[1] < 1.1 * peaks[0]


def test_a_reduced_map_is_built_without_its_fields(tmp_path):
    workdir = write_random_model(
        tmp_path / "model", box_size=96, layers=1, width=16, zdim=2, n_particles=700
    )
    grown, fields = run_python(REDUCED, workdir, tmp_path / "run")
    assert fields > 200 * 2**20
    assert grown < 0.3 * fields


@pytest.mark.parametrize(
    ("n", "p", "solver", "linkage", "limit_mib", "kind"),
    [
        (3000, 2000, "gram", "average", 2048, "distances"),
        (3000, 8000, "iteration", "average", 600, "distances"),
        (9000, 1000, "auto", "ward", 730, "vectors"),
        (9000, 1000, "auto", "average", 730, "two-level"),
    ],
)
def test_components_and_states_keep_to_the_limit(tmp_path, n, p, solver, linkage, limit_mib, kind):
    made = write_masked_run(tmp_path, n, p)
    limit = limit_mib * 2**20
    peaks, joined, used = run_python(STAGES, made, n, p, solver, linkage, limit)
    assert joined == kind
    assert used == (solver if solver != "auto" else "iteration")
    for peak, planned in peaks:
        assert peak <= planned <= limit
        assert peak >= 0.3 * planned  # torch, which it counts, is not loaded here


@pytest.mark.parametrize(("store", "embedding"), [("masked", "none"), ("volumes", "reduced")])
def test_a_whole_run_takes_what_its_plan_says(adk_workdir, tmp_path, store, embedding):
    rows = slice(0, 20_000, 8)
    workdir = copy_with_particles(adk_workdir, 14, rows, tmp_path / "model")
    peak, disk = run_python(WHOLE, workdir, tmp_path / "run", store, embedding)
    planned_peak, planned_disk = run_python(COST, workdir, store, embedding)
    assert peak / 1.1 < planned_peak < 1.1 * peak
    assert disk / 1.1 < planned_disk < 1.1 * disk
