"""The scaling benchmark at its tiny size, and its model on made-up numbers."""

import dataclasses
import json
import math

import harness
import numpy as np
import pytest
import results as page_of_results
import scaling
import scaling_model
from PIL import Image
from scaling import Timing
from scaling_model import Costs, Work

COSTS = Costs(0.05, 0.0, math.inf, task_seconds=0.004, startup_seconds=0.5)


@pytest.mark.slow
def test_tiny_run(tmp_path, capsys):
    output, page = tmp_path / "new" / "scaling.json", tmp_path / "RESULTS.md"
    results = harness.benchmark("scaling", "tiny", output, workers=2)
    written = json.loads(output.read_text())
    assert written["machine"]["versions"]["dask"]
    assert written["scaling"] == results["scaling"]
    assert [(row["job"], row["workers"]) for row in results["scaling"]] == [
        (job, n) for job in scaling_model.JOBS for n in (1, 2)
    ]
    for row in results["scaling"]:
        assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
        assert row["particles"] == row["tasks"] * scaling_model.batch_of(row["job"], "cpu")
        if row["workers"] == 1:
            assert row["ratio"] == row["weak"] == 1
        else:
            assert row["machine"] > 0
            assert 0 < row["client_cpu"] < 2
    for row in results["overhead"]:
        assert 0 <= row["client_cpu_seconds"] < 1  # 0: other work hid it
        batch = results["costs"][row["case"]][row["job"]]["volume_seconds"] * row["particles"]
        assert 0 <= row["client_cpu_fraction"] < 1
        assert 0 <= row["task_fraction"] < 1
        assert row["task_seconds"] == pytest.approx(
            row["task_fraction"] * (row["task_seconds"] + batch)
        )
    assert {row["workers"] for row in results["check"]} == {2}
    assert all(rate > 0 for rate in results["disk_bytes_a_second"].values())
    assert len(results["paper"]["rows"]) == len(scaling_model.JOBS) * len(scaling_model.PROJECTED)
    for row in results["paper"]["rows"]:
        assert row["basis"].startswith("projected from this CPU")
        assert row["at_workers"] > 0
    assert "projected from this CPU" in capsys.readouterr().out
    assert page_of_results.run(output.parent, page) == ["scaling"]
    assert "projected from this CPU" in page.read_text()
    with Image.open(tmp_path / "plots" / "scaling.png") as image:
        assert np.asarray(image.convert("L")).std() > 10  # something is drawn


def test_whole_batches_are_a_workers_share():
    work = Work(n_volumes=100, batch_size=8)
    assert work.n_tasks == 13
    seconds = [scaling_model.predict(Costs(1.0), work, n) for n in (1, 2, 12, 13, 50)]
    assert seconds == [100, 56, 16, 8, 8]
    assert scaling_model.predict(COSTS, work, 2) == pytest.approx(0.5 + 56 * 0.05)


def test_the_slowest_resource_counts():
    work = Work(n_volumes=640, batch_size=8, volume_bytes=1000)
    costs = dataclasses.replace(COSTS, copy_seconds=0.02, disk_bytes_a_second=1e6)
    busy = scaling_model.resources(costs, work, 1)
    assert busy == pytest.approx(
        {"decoding": 32.0, "copying": 12.8, "disk": 0.64, "scheduler": 0.32}
    )
    assert scaling_model.predict(costs, work, 1) == pytest.approx(32.5)
    assert scaling_model.predict(costs, work, 80) == pytest.approx(0.5 + 0.64)
    assert scaling_model.predict(dataclasses.replace(costs, copy_seconds=0.1), work, 1) == 64.5


def test_what_saturates_first():
    work = Work(n_volumes=6400, batch_size=8, volume_bytes=1000)
    assert scaling_model.saturation(COSTS, work) == pytest.approx(
        {"scheduler": 100, "batches": 800}
    )
    slow = dataclasses.replace(COSTS, disk_bytes_a_second=2e5)
    assert list(scaling_model.saturation(slow, work).items()) == [
        ("disk", pytest.approx(10)),
        ("scheduler", pytest.approx(100)),
        ("batches", 800),
    ]
    idle = scaling_model.saturation(Costs(0.05), dataclasses.replace(work, volume_bytes=0))
    assert idle == {"batches": 800}
    n = round(scaling_model.saturation(COSTS, work)["scheduler"])
    busy = scaling_model.resources(COSTS, work, n)
    assert busy["scheduler"] == pytest.approx(busy["decoding"], rel=0.01)


def test_a_line_is_found_again():
    assert scaling_model.fit_line([10, 30, 100], [0.7, 1.1, 2.5]) == pytest.approx((0.5, 0.02))
    assert scaling_model.fit_line([10, 100], [0.1, 1.1]) == (0, pytest.approx(0.01, rel=0.06))
    assert scaling_model.fit_line([10, 100], [0.5, 0.4]) == (pytest.approx(0.44, rel=0.02), 0)


def made_up(costs: Costs, measured: float = 1.0) -> dict:
    """Give what would be measured of a job that costs this, two workers ``measured`` times it."""
    rows = []
    for n in (1, 2):
        # one worker is this process: it has neither start nor scheduler
        of_n = costs if n > 1 else Costs(costs.volume_seconds)
        strong = scaling_model.predict(of_n, Work(64, 8), n) * (measured if n > 1 else 1)
        weak = scaling_model.predict(of_n, Work(32 * n, 8), n)
        row = {"case": "made up", "job": "exact", "workers": n, "particles": 64, "tasks": 8}
        rows.append(row | {"seconds": strong, "weak_seconds": weak})
    empty = {"job": "exact", "batches_of": "cpu", "particles": 8, "task_seconds": 0.005}
    empty |= {"client_cpu_seconds": costs.task_seconds, "start_seconds": costs.startup_seconds}
    return {
        "case": scaling.SIZES["tiny"].cases[0],
        "device": "cpu",
        "connect_seconds": {2: 1.0},
        "scaling": rows,
        "overhead": [empty],
    }


def test_fit_recovers_known_costs():
    found = made_up(COSTS)
    fitted = scaling_model.fit(found, page_cache=1e9)
    assert dataclasses.asdict(fitted["exact"]) == pytest.approx(dataclasses.asdict(COSTS))
    assert found["overhead"][0]["task_fraction"] == pytest.approx(0.005 / 0.405)
    assert found["overhead"][0]["client_cpu_fraction"] == pytest.approx(0.004 / 0.404)
    (line,) = scaling_model.check(found, fitted)
    assert line["error"] == pytest.approx(0, abs=1e-9)


def test_a_wrong_model_shows():
    found = made_up(COSTS, measured=2.0)
    found["scaling"][1]["machine"] = 1.0  # two processes are no faster than one
    (line,) = scaling_model.check(found, scaling_model.fit(found, page_cache=1e9))
    assert line["error"] == pytest.approx(-0.5)
    assert line["on_machine"] == pytest.approx(0.5 + 64 * 0.05)


def test_rounds_that_others_disturb_do_not_count():
    quiet, busy = Timing(2.0, 0.1, 0.01), Timing(8.0, 0.1, 0.4)
    one, two = [quiet, busy, quiet], [Timing(1.0, 0.1, 0.0)] * 3
    assert scaling.ratios(one, two) == ([2.0, 2.0], 2)
    assert scaling.median_time(one) == 2.0
    assert scaling.ratios([busy], [quiet]) == ([4.0], 0)
    assert scaling.median_time([busy]) == 8.0


def test_worker_counts():
    assert scaling.worker_counts(1) == [1]
    assert scaling.worker_counts(2) == [1, 2]
    assert scaling.worker_counts(6) == [1, 2, 4, 6]


RATES = dict.fromkeys(scaling_model.JOBS, 5e10)
FIRST = {
    "device": "cpu",
    "points": {"reduced": 400},
    "overhead": [{"job": job, "client_cpu_seconds": 0.004} for job in scaling_model.JOBS],
    "connect_seconds": {2: 2.0},
    "warm_seconds": 1.0,
}


@pytest.mark.parametrize(
    ("measured", "workers", "basis", "exact"),
    [
        ({}, "CPU workers", "projected from this CPU", 3.456e12 / 5e10),
        (
            {"device": "cuda", "decode_seconds": 0.01, "copy_bytes_a_second": 1e12},
            "GPUs",
            "projected from this GPU",
            0.01,
        ),
    ],
)
def test_what_the_papers_network_is_projected_from(measured, workers, basis, exact):
    found = scaling_model.paper(FIRST | measured, 2e9, RATES)
    assert (found["workers"], found["basis"]) == (workers, basis)
    assert found["costs"]["exact"]["volume_seconds"] == pytest.approx(exact, rel=1e-3)
    assert found["costs"]["generate"]["volume_seconds"] == pytest.approx(exact, rel=1e-3)
    points = found["costs"]["reduced"]["volume_seconds"] / found["costs"]["exact"]["volume_seconds"]
    assert points == pytest.approx(400 * 6_295_552 / 3.456e12, rel=1e-3)
    assert {row["basis"] for row in found["rows"]} == {basis}


def test_projection_says_what_fills_first():
    def rows(**measured):
        gpu = {"device": "cuda", "decode_seconds": 0.01, "copy_bytes_a_second": 1e12} | measured
        found = scaling_model.paper(FIRST | gpu, measured.pop("disk", 2e9), RATES)
        return {(row["job"], row["workers"]): row for row in found["rows"]}

    on_gpus = rows()
    assert on_gpus["exact", 1]["hours"] == pytest.approx((3 + 3440.69) / 3600)
    assert on_gpus["exact", 8]["first_full"] == "scheduler"
    assert on_gpus["exact", 8]["at_workers"] == pytest.approx(160, rel=1e-3)
    assert on_gpus["generate", 64]["limit"] == "disk"
    assert rows(copy_bytes_a_second=5e8, disk=1e12)["generate", 8]["limit"] == "copying"
