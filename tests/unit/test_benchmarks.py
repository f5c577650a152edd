"""The benchmarks at their tiny size, so that none rots."""

import json
import subprocess
import sys
from pathlib import Path

import decode
import embedding
import gpu_check
import machine
import memory
import pytest
import random_model
import torch
import truth
import whole_run

from scapedist import open_model


def test_decode(tmp_path, capsys):
    before = torch.get_num_threads()
    rows = decode.run("tiny", tmp_path / "new" / "decode.json", threads=[1])
    assert torch.get_num_threads() == before
    assert [row["model"] for row in rows] == [case.name for case in decode.SIZES["tiny"]]
    for row in rows:
        assert row["relative_error"] < 1e-5
        assert row["times_as_fast"] > 0
        assert row["fraction"] > 0
    written = json.loads((tmp_path / "new" / "decode.json").read_text())
    assert written["rows"] == rows
    assert written["machine"]["versions"]["cryodrgn"]
    header, *lines = capsys.readouterr().out.splitlines()
    assert "times_as_fast" in header
    assert len(lines) == len(rows)


def test_one_model_alone():
    name = decode.SIZES["tiny"][1].name
    assert [row["model"] for row in decode.run("tiny", None, [1], name)] == [name]


def test_the_machine_is_described(capsys):
    described = machine.describe()
    json.dumps(described)
    assert {"processor", "cores", "threads", "versions", "date", "command"} <= set(described)
    assert machine.matrix_rate(1, sizes=(64,), n_repeats=2) > 0
    machine.print_table([{"a": 1, "b": 0.5}, {"a": "x", "b": 2e-7}])
    assert capsys.readouterr().out.splitlines() == ["a        b", "1      0.5", "x  2.0e-07"]
    machine.print_table([])


@pytest.mark.parametrize("command", random_model.COMMANDS)
def test_random_models_from_the_command_line(tmp_path, monkeypatch, capsys, command):
    options = f"--command {command} --box-size 8 --width 8 --zdim 2 --n-particles 5 --with-indices"
    monkeypatch.setattr("sys.argv", ["random_model.py", str(tmp_path), *options.split()])
    random_model.main()
    assert "epoch 19" in capsys.readouterr().out
    model = open_model(tmp_path, 19)
    assert model.latents.shape == (5, 2)
    assert model.stack_indices.tolist() == [1, 3, 5, 7, 9]


def test_random_models_are_the_same_for_the_same_seed(tmp_path):
    first, again, other = (
        open_model(random_model.write_random_model(tmp_path / name, box_size=8, seed=seed), 19)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert (first.latents == again.latents).all()
    assert (first.decode(first.latents[:1]) == again.decode(first.latents[:1])).all()
    assert (first.decode(first.latents[:1]) != other.decode(first.latents[:1])).any()


def test_whole_run():
    results = whole_run.compare("tiny", n_workers=1)
    assert [row["program"] for row in results["rows"]] == ["cryodrgn", "scapedist"]
    for row in results["rows"]:
        assert row["seconds"] > 0.5
        assert row["peak MiB"] > row["idle MiB"] > 50
    json.dumps(results)


def test_memory():
    results = memory.compare("tiny")
    assert [row["sketch"] for row in results["rows"]] == [12, 48]
    assert 0.5 < results["peak_ratio"] < 2


def test_truth():
    rows = truth.against_truth("tiny")
    assert {row["kind"] for row in rows} == {"LID-less", "rare"}
    assert all(0 <= row["recall of best"] <= 1 for row in rows)


def test_embedding(capsys):
    results = embedding.run("tiny")
    assert list(results) == list(embedding.TABLES)
    assert [row["method"] for row in results["methods"]][0] == "reduced"
    assert all(row["relative error"] > 0 for row in results["methods"])
    assert [row["what"] for row in results["pace"]] == ["decoding alone", "exact", "reduced"]
    assert [row["box"] for row in results["box"]] == [8, 12]
    assert [row["method"] for row in results["missed"]] == ["reduced", "exact"] * 2
    for row in results["missed"]:
        assert row["of the kind"] <= row["particles"]
    assert "times as fast" in capsys.readouterr().out


def test_gpu_check_says_what_it_found(tmp_path, capsys):
    found = gpu_check.run("tiny", tmp_path / "check.json", "cpu")
    assert found["failures"] == {}
    rows = {(row["section"], row["what"]): row for row in found["rows"]}
    sections = {section for section, _ in rows}
    assert {"error", "decode", "exact", "reduced", "run", "gram", "linkage"} <= sections
    judged = [row for row in found["rows"] if row["verdict"]]
    assert len(judged) >= 8
    assert {row["verdict"] for row in judged} == {"ok"}
    # 12 bits, 8 bits: a precision that is not what its name says would show
    error = {dtype: rows["error", f"{dtype}, box 12, 3 x 32"]["value"] for dtype in
             ("float32", "float16", "bfloat16")}  # fmt: skip
    assert error["float32"] < 1e-5 < 1e-4 < error["float16"] < 0.5 * error["bfloat16"]
    particle = rows["exact", "float32: a particle"]["value"]
    minutes = rows["exact", f"float32: {gpu_check.PARTICLES} particles"]["value"]
    assert minutes == pytest.approx(particle * gpu_check.PARTICLES / 60e3)
    assert json.loads((tmp_path / "check.json").read_text())["rows"] == found["rows"]
    assert "merges unlike SciPy" in capsys.readouterr().out


def test_gpu_check_goes_on_after_a_failure(monkeypatch, capsys):
    def broken(check):
        raise RuntimeError("no such card")

    monkeypatch.setattr(gpu_check, "SECTIONS", (broken, gpu_check.correctness))
    found = gpu_check.run("tiny", None, "cpu")
    assert found["failures"] == {"broken": "RuntimeError: no such card"}
    assert found["rows"]
    assert "FAILED broken: RuntimeError: no such card" in capsys.readouterr().out
    assert "no such card" not in gpu_check.run("tiny", None, "cpu", seconds=0)["failures"]["broken"]


def test_gpu_check_needs_few_packages():
    """It starts where neither cryoDRGN nor Dask, Zarr or scikit-learn is installed."""
    code = """
import sys
for name in ("cryodrgn", "dask", "distributed", "zarr", "sklearn", "typer", "rich", "mrcfile"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import gpu_check
keep = ("matrix_rate", "correctness", "gram", "linkage", "overlap", "landscape")
gpu_check.SECTIONS = [s for s in gpu_check.SECTIONS if s.__name__ in keep]
found = gpu_check.run("tiny", None, "cpu")
assert not found["failures"], found["failures"]
assert "run" not in {row["section"] for row in found["rows"]}
assert any("plain files" in row["what"] for row in found["rows"])
"""
    place = str(Path(gpu_check.__file__).parent)
    subprocess.run([sys.executable, "-c", code, place], check=True, capture_output=True)
