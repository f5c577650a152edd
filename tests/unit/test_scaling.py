"""The scaling benchmark at its tiny size, and its sums on made-up numbers."""

import json

import harness
import pytest
import results as page_of_results
import scaling
from scaling import Timing


@pytest.mark.slow
def test_tiny_run(tmp_path, capsys):
    output, page = tmp_path / "new" / "scaling.json", tmp_path / "RESULTS.md"
    found = harness.benchmark("scaling", "tiny", output, workers=2)
    assert json.loads(output.read_text()) == found
    assert found["machine"]["versions"]["dask"]
    assert [(row["job"], row["workers"]) for row in found["scaling"]] == [
        (job, n) for job in scaling.JOBS for n in (1, 2)
    ]
    for row in found["scaling"]:
        assert row["lowest"] <= row["ratio"] <= row["highest"]
        assert row["particles"] == row["tasks"] * scaling.batch_of(row["job"], "cpu")
        if row["workers"] == 1:
            assert row["ratio"] == row["weak"] == 1
        else:
            assert min(row["machine"], row["of_machine"]) > 0
    assert [row["job"] for row in found["overhead"]] == list(scaling.JOBS)
    for row in found["overhead"]:
        assert 0 <= row["client_cpu_seconds"] < 1  # 0: other work hid it
        assert 0 <= row["task_seconds"] < 1
        assert row["first_full"] in ("scheduler", "disk")
        if row["job"] == "generate":
            assert row["disk_rate"] > 2**20
    assert "| first full | at workers |" in capsys.readouterr().out
    assert page_of_results.run(output.parent, page) == ["scaling"]
    assert "![Scaling](plots/scaling.png)" in page.read_text()


def test_a_line_is_found_again():
    assert scaling.fit_line([10, 30, 100], [0.7, 1.1, 2.5]) == pytest.approx((0.5, 0.02))
    assert scaling.fit_line([10, 100], [0.1, 1.1]) == (0, pytest.approx(0.01, rel=0.06))
    assert scaling.fit_line([10, 100], [0.5, 0.4]) == (pytest.approx(0.44, rel=0.02), 0)


@pytest.mark.parametrize(
    ("device", "job", "disk", "first", "at_workers"),
    [
        ("cpu", "exact", 1.0, "scheduler", 100),
        ("cpu", "generate", 1e9, "scheduler", 100),
        ("cpu", "generate", 2e5, "disk", 10),
        ("cuda", "exact", 1.0, "scheduler", 99),  # 0.05 s is its start
    ],
)
def test_what_more_workers_fill_first(device, job, disk, first, at_workers):
    """One worker takes 0.05 s a particle, a task of eight 0.005 s on the clock and 0.004 of CPU."""
    one = {"particles": 64, "seconds": 3.2, "weak_seconds": 1.6}
    empty = {"batches_of": device, "job": job, "particles": 8, "volume_bytes": 1000}
    empty |= {"start_seconds": 0.02, "task_seconds": 0.005, "client_cpu_seconds": 0.004}
    found = scaling.fractions(empty, one, 2, disk)
    assert (found["first_full"], round(found["at_workers"])) == (first, at_workers)
    assert found["task_fraction"] == pytest.approx(0.005 / 0.405, rel=0.01)


def test_nothing_is_full_where_other_work_hid_what_it_takes():
    one = {"particles": 64, "seconds": 3.2, "weak_seconds": 1.6}
    empty = {"batches_of": "cpu", "job": "exact", "particles": 8}
    empty |= {"start_seconds": 0.0, "task_seconds": 0.0, "client_cpu_seconds": 0.0}
    assert scaling.fractions(empty, one, 2, 1.0)["at_workers"] == ""


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
