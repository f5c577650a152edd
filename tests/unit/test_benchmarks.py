"""The benchmarks at their tiny size, so that none rots."""

import json
import subprocess
import sys
from pathlib import Path

import alone
import decode
import embedding
import gpu_check
import growth
import landscape_full
import linkage
import machine
import memory
import pca
import planned
import processes
import pytest
import random_model
import results
import results_plot
import store
import torch
import truth
import whole_run
from scipy.spatial.distance import pdist, squareform

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


@pytest.fixture
def one_thread(monkeypatch):
    """Torch on one thread, in commands too: two wait for each other where tests share cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with machine.n_threads(1):
        yield


def test_whole_run(one_thread):
    results = whole_run.compare("tiny", n_workers=1)
    theirs, ours = results["rows"]
    assert [row["program"] for row in (theirs, ours)] == ["cryodrgn", "scapedist"]
    for row in (theirs, ours):
        assert row["sketch"] == 30
        assert min(row["seconds"], row["cpu seconds"]) > 0.5
        assert row["peak MiB"] > 0.8 * row["idle MiB"] > 40
        assert row["above idle MiB"] == row["peak MiB"] - row["idle MiB"]
        assert row["disk MiB"] > 30 * 16**3 * 4 / 2**20  # its volumes
    (ratios,) = results["ratios"]
    assert ratios["time"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert ratios["disk"] == pytest.approx(theirs["disk MiB"] / ours["disk MiB"])
    assert json.loads(json.dumps(results))["benchmark"] == "whole_run"


UMAP = """
from scipy.sparse import eye

class UMAP:
    def __init__(self, n_neighbors):
        pass

    def fit_transform(self, rows):
        self.graph_ = eye(len(rows), k=1, format="csr")
        return rows[:, :2]
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # cryoDRGN's
def test_landscape_full(one_thread, monkeypatch, tmp_path):
    (tmp_path / "umap.py").write_text(UMAP)  # cryoDRGN's other half a minute is its compilation
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    idle = {"cryodrgn": 60 * 2**20, "scapedist": 61 * 2**20}  # test_whole_run measures these
    monkeypatch.setattr(landscape_full, "idle_bytes", lambda n_workers: idle)
    results = landscape_full.compare("tiny", n_workers=1)
    rows = {(row["program"], row["training volumes"]): row for row in results["rows"]}
    full, both, default = "analyze_landscape_full", "both", 10_000
    names = [(name, n) for n in (100, default) for name in (full, both)]
    assert set(rows) == {("scapedist", ""), ("analyze_landscape", ""), *names}
    for (_, n), row in rows.items():
        assert row["extrapolated"] == (n == default)
        assert row["peak MiB"] > 0.8 * row["idle MiB"] > 40
    first, ours = rows["analyze_landscape", ""], rows["scapedist", ""]
    (pace,) = results["pace"]
    assert 0 <= pace["growing, s"] < rows[full, 100]["seconds"]
    expected = rows[full, 100]["seconds"] + 99 * pace["growing, s"]
    assert rows[full, default]["seconds"] == pytest.approx(expected)
    for n in (100, default):
        assert rows[both, n]["seconds"] == first["seconds"] + rows[full, n]["seconds"]
        assert rows[both, n]["disk MiB"] > max(first["disk MiB"], rows[full, n]["disk MiB"])
    assert [row["extrapolated"] for row in results["ratios"]] == [False, True]
    assert results["ratios"][0]["time"] == rows[both, 100]["seconds"] / ours["seconds"]
    exact, guessed = results["accuracy"]
    assert exact["program"] == "scapedist, exact"  # its default for few particles
    assert exact["relative error"] < 1e-5
    assert guessed["training volumes"] == 100
    assert 1e-3 < guessed["relative error"] < 1  # 1: of the mean alone
    json.dumps(results)


def test_what_grows_with_training_volumes():
    log = """(INFO) (a.py) (23-Nov-2026 23:59:40) Loading weights from w
(INFO) (a.py) (23-Nov-2026 23:59:50) Generating 2 volume embeddings
(INFO) (a.py) (24-Nov-2026 00:00:10) Finished generating 2 volumes in 0:00:20
(INFO) (a.py) (24-Nov-2026 00:00:30)
Test set: Average loss: 0.1
(INFO) (a.py) (24-Nov-2026 00:00:31) Running UMAP...
"""
    assert landscape_full.growing_seconds(log) == 40
    row = {"training volumes": 2, "seconds": 60.0, "cpu seconds": 50.0, "disk MiB": 3.0}
    found = landscape_full.extrapolated(row, {"a volume, s": 20.0})
    assert found["seconds"] == 60 + 20 * 9998
    assert (found["training volumes"], found["extrapolated"]) == (10_000, True)
    assert (found["cpu seconds"], found["disk MiB"]) == ("", 3.0)


def test_what_else_the_machine_did_is_measured():
    work = "import time\nend = time.time() + 2\nwhile time.time() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", work])
    measured = processes.measure(["sleep", "1"])
    other.wait()
    assert measured.cpu_seconds < 0.2 < measured.others_seconds


def test_files_are_counted_once(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "volume").write_bytes(bytes(1000))
    assert processes.disk_bytes(tmp_path) == 1000
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "volume")
    assert 1000 < processes.disk_bytes(tmp_path) < 2000


def test_memory():
    results = memory.compare("tiny")
    assert [row["sketch"] for row in results["rows"]] == [12, 48]
    assert 0.5 < results["peak_ratio"] < 2
    for row in results["rows"]:
        assert 50 < row["largest process MiB"] <= row["peak MiB"]


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


def test_store(tmp_path, capsys):
    found = store.run("tiny", tmp_path / "store.json", tmp_path)
    rows = {(row["what"], row["stored"], row["way"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    n_values = {"whole": 16**3, "masked": 16**3 // 4}
    for (what, stored, way), row in rows.items():
        mib = 4 * n_values[stored] / 2**20
        assert row["MiB/s"] == pytest.approx(1e3 * mib / row["ms a volume"])
        assert row["10 %"] <= row["rate to files"] <= row["90 %"]
        if way == "plain files":
            assert row["rate to files"] == 1
        if what == "write":
            assert row["ms a volume"] <= rows["to the disk", stored, way]["ms a volume"]
    for what, n_ways in (("write", 5), ("to the disk", 5), ("read one", 8), ("read all", 8)):
        ways = [row for key, row in rows.items() if key[:2] == (what, "whole")]
        assert len(ways) == n_ways
        maps = [row for row in ways if row["way"] in store.MRC]
        assert min(maps, key=lambda row: row["ms a volume"])["time to MRC"] == 1
    assert rows["read one", "whole", "mrcfile.open"]["to one not copied"] == 1
    for target in found["targets"]:
        what, key = target["target"].split(": ")
        assert target["found"] == rows[what, target["stored"], "scapedist"][key]
        least = what == "write"
        assert target["met"] == (target["found"] >= 0.7 if least else target["found"] <= 1)
    assert [t["stored"] for t in found["targets"]] == ["whole", "whole", "whole", "masked"]
    written = json.loads((tmp_path / "store.json").read_text())
    assert written.pop("machine")["processor"]
    assert written == found
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]
    assert "reading one volume at random" in capsys.readouterr().out


def test_store_takes_ratios_of_the_same_round():
    times = {
        "plain files": [1.0, 2.0, 10.0],
        "scapedist": [2.0, 4.0, 10.0],
        "mrcfile.open, copied": [4.0, 16.0, 5.0],
        "mrcfile.mmap, copied": [30.0, 30.0, 30.0],
        "mrcfile.open": [1.0, 1.0, 1.0],
    }
    files, ours, *_ = store.summary(times, 2**20)
    assert (files["rate to files"], files["ms a volume"]) == (1, 2000)
    assert ours["MiB/s"] == 0.25
    assert (ours["rate to files"], ours["time to MRC"], ours["to one not copied"]) == (0.5, 0.5, 4)
    assert ours["10 %"] == 0.5
    assert ours["90 %"] == pytest.approx(0.9)


def test_store_compares_what_it_read(monkeypatch):
    sound = store.read_rows
    monkeypatch.setattr(store, "read_rows", lambda *given: 2 * sound(*given))
    with pytest.raises(RuntimeError, match="scapedist: volume 0 is not what was written"):
        store.run("tiny", None)


def test_store_writes_as_a_run_does(tmp_path):
    for shape in ((3, 4, 4, 4), (3, 16)):
        place = tmp_path / str(len(shape))
        write = store.to_store(place, shape)
        assert write.func is store.write_row
        (array,) = write.args
        assert array.chunks == (1, *shape[1:])
        assert array.path == ("volumes/0" if len(shape) == 4 else "volumes/masked")
        write(1, torch.ones(shape[1:]).numpy())
        assert array[1].tolist() == torch.ones(shape[1:]).tolist()


def test_results_page(tmp_path, capsys):
    folder = tmp_path / "results"
    (decoded,) = decode.run("tiny", folder / "decode.json", [1], "D=16 3x32")
    stored = store.run("tiny", folder / "by_another_name.json")
    (folder / "truth.json").write_text('{"rows": [')
    (folder / "weather.json").write_text('{"rows": [{"rain": 1}]}')
    capsys.readouterr()
    names = results.run(folder, tmp_path / "page" / "RESULTS.md")
    assert names == ["decode", "store"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("left out: truth.json (")
    assert said[1] == "left out: weather.json (not of a benchmark known here)"
    page = (tmp_path / "page" / "RESULTS.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## Decoding", "## Volumes on disk"]
    fast, error = (results.text(decoded[key]) for key in ("times_as_fast", "relative_error"))
    (line,) = [line for line in page.splitlines() if line.startswith("| D=16 3x32 |")]
    assert f" {fast} |" in line
    assert f" {error} |" in line
    rows = [line for line in page.splitlines() if line.startswith("| 16 |")]
    assert len(rows) == len(stored["rows"])
    assert str(tmp_path) not in page
    tables = [line.split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert max(map(len, tables)) <= results.MOST_COLUMNS
    for name in names:
        assert f"(plots/{name}.png)" in page
        data = (tmp_path / "page" / "plots" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")


def test_results_without_files(tmp_path):
    assert results.run(tmp_path, tmp_path / "RESULTS.md") == []
    assert (tmp_path / "RESULTS.md").read_text().startswith("# Measurements")


def test_results_of_other_rows_are_no_reason_to_stop(tmp_path, capsys):
    for name in results.SECTIONS:
        (tmp_path / f"{name}.json").write_text('{"rows": [{"other": 1.5}], "scaling": 3}')
    names = results.run(tmp_path, tmp_path / "RESULTS.md")
    assert names == list(results.SECTIONS)
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.count("| other |") == 1  # of linkage, which has no columns of its own
    assert "![" not in page
    assert "not drawn: decode" in capsys.readouterr().out


def test_results_in_numbers_and_their_command():
    given = (12345, 1234.5, 12.345, 0.0012345, 1.2345e-7, 0.0, True, "a|b", None, [1])
    shown = ["12,345", "1,234", "12.3", "0.00123", "1.2e-07", "0", "yes", "a\\|b", "", ""]
    assert [results.text(value) for value in given] == shown
    command = "/there/store.py --size full --output=/x.json --place /there --plot /y.png"
    assert results.command(command) == "python benchmarks/store.py --size full"


def test_results_are_drawn_against_two_sizes_and_more():
    rows = [
        {"n": n, "program": program, "linkage": linkage, "seconds": n * factor, "MiB": ""}
        for program, factor in (("a", 1.0), ("b", 2.0))
        for linkage in ("ward", "single")
        for n in (1000, 10)
    ]
    figure = results_plot.linkage({"rows": rows})
    (axes,) = figure.axes  # nothing to draw of the memory
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.lines[1].get_xdata().tolist() == [10, 1000]
    assert axes.lines[1].get_ydata().tolist() == [20, 2000]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "1,000"]
    assert results_plot.linkage({"rows": rows[::2]}) is None
    assert results_plot.lines(rows[::2], "n", "program", {"seconds": "time"}, "n") is None


def test_pca(monkeypatch):
    monkeypatch.setattr(pca, "find_spec", lambda name: None)
    methods = (pca.GRAM, pca.PASSES, pca.FULL, "dask-ml, PCA")
    found = pca.run("tiny", methods, n_workers=1)
    *measured, missing = found["rows"]
    assert [row["method"] for row in found["rows"]] == list(methods)
    assert missing["error"] == "not installed"
    for row in measured:
        assert (row["rows"], row["voxels"], row["processes"], row["error"]) == (60, 500, 1, "")
        assert row["seconds"] > 0
        assert 0 < row["above idle MiB"] < 50
        bound = 1e-10 if row["method"] in pca.OURS else 1e-4  # rounding of float64, of float32
        assert max(row["angle"], row["variance error"]) < bound
    assert found["targets"] == []
    assert json.loads(json.dumps(found))["benchmark"] == "pca"


def test_pca_targets_of_each_number_of_processes():
    def row(method, processes, seconds):
        return {"method": method, "processes": processes, "seconds": seconds, "angle": 1e-7,
                "above idle MiB": 10 * seconds}  # fmt: skip

    ways = ((pca.GRAM, 1, 6), (pca.GRAM, 2, 3), (pca.FULL, 1, 4), (pca.RANDOMIZED, 1, 2))
    found = pca.targets(pca.Case(1000), [row(*way) for way in ways])
    for n, met in ((1, False), (2, True)):
        angle, full, randomized, memory = (r for r in found if r["processes"] == n)
        assert angle["met"]
        assert (full["met"], randomized["met"], memory["met"]) == (met, met, False)
        assert full["found"] == (0.75 if met else 1.5)
        assert memory["found"] == (1.5 if met else 3)


def test_pca_by_two_processes_and_what_fails(tmp_path):
    group = pca.make_store(pca.Case(70, voxels=300), tmp_path)
    result = tmp_path / "found.npz"
    assert pca.alone("pca", pca.GRAM, "2", *map(str, (group, group, result)))["bytes"] > 0
    vectors, variance = pca.exact(group)
    assert max(pca.errors(result, (vectors, variance)).values()) < 1e-10
    turned = vectors.copy()
    turned[0] += 1e-3 * pca.exact(group, 21)[0][-1]
    wrong = pca.errors(result, (turned, variance * 1.01))
    assert wrong == pytest.approx({"angle": 1e-3, "variance error": 0.01 / 1.01}, rel=1e-3)
    found = pca.alone("pca", pca.GRAM, "1", *["/nowhere"] * 3)
    assert "nowhere" in found["error"]
    found = pca.alone("pca", "no method", "1", *["/nowhere"] * 3)
    assert found["error"] == "KeyError: 'no method'"


def test_the_peak_of_a_process():
    before = alone.reset_peak()
    held = bytearray(64 * 2**20)
    del held
    assert 60 * 2**20 < alone.peak_bytes() - before < 80 * 2**20
    assert alone.reset_peak() < before + 20 * 2**20


def test_linkage():
    found = linkage.run("tiny")
    rows = {row["program"]: row for row in found["rows"]}
    assert list(rows) == list(linkage.PROGRAMS)
    for name, row in rows.items():
        assert (row["n"], row["linkage"], row["error"]) == (100, "ward", "")
        assert row["seconds"] > 0
        if name == linkage.TWO_LEVELS:
            assert 0.3 < row["Rand index"] <= 1  # 0: by chance
        else:
            assert row["merges unlike"] == 0
            assert row["height error"] < 1e-12
    assert found["exponents"] == []  # of one size
    assert json.loads(json.dumps(found))["benchmark"] == "linkage"


def test_linkage_is_given_distances_and_told_of_other_trees(tmp_path):
    linkage.write_points(tmp_path / "points", 300)
    given = {make.__name__: make(tmp_path / "points") for make in
             (linkage.points, linkage.distances, linkage.square)}  # fmt: skip
    exact = pdist(given["points"])
    assert given["distances"] == pytest.approx(exact, rel=1e-12)
    assert given["square"] == pytest.approx(squareform(exact) ** 2, rel=1e-12)
    trees = [linkage.by_scipy(exact, method) for method in ("average", "ward", "complete")]
    same, other, third = (linkage.compared("any", tree, trees[0]) for tree in trees)
    assert same == {"merges unlike": 0, "height error": 0}
    assert min(other["merges unlike"], third["merges unlike"]) > 50
    assert min(other["height error"], third["height error"]) > 0.1
    rows = [
        {"n": n, "linkage": "a", "program": "b", "seconds": 2 * n**2.5, "above idle MiB": n / 7,
         "error": ""}
        for n in (10, 40, 100)
    ]  # fmt: skip
    (fitted,) = linkage.exponents(rows)
    assert (fitted["time"], fitted["memory"]) == pytest.approx((2.5, 1))


def test_growth(capsys):
    results = growth.run("tiny")
    stages = {row["stage"] for row in results["measured"]}
    assert stages == {"components, gram", "components, iteration", "states, average", "decoding",
                      "sketch"}  # fmt: skip
    for row in results["rows"]:
        assert -5 < row["exponent"] < 5
        assert row["from"] < row["to"]
    (many,) = results["many"]
    assert many["solver"] == "gram"
    assert many["joined from"] == "distances of all pairs"
    assert 0.05 < many["peak GiB"] < many["planned GiB"] < many["limit GiB"]
    assert 0.05 < many["worker GiB"] < many["planned worker GiB"]
    assert many["disk GiB"] * 2**30 > 150 * 300 * 4 + 150 * 150 * 8
    assert "exponent" in capsys.readouterr().out


def test_planned(tmp_path):
    found = planned.run("tiny")
    (row,), stages = found["rows"], found["stages"]
    assert row["sketch"] == 30
    assert 0.8 < row["planned / measured disk"] < 1.5
    assert 0.8 < row["planned / measured MiB"] < 2
    assert row["seconds"] > 1
    assert sum(each["seconds"] for each in stages) == pytest.approx(row["seconds"])
    assert sum(each["planned s"] for each in stages) == pytest.approx(row["planned s"])
    assert json.loads(json.dumps(found))["benchmark"] == "planned"


def test_exponents_of_runs_hold_the_other_variables_fixed():
    stages = [
        {"stage": "pca", "sketch": n, "box": d, "workers": w, "embedding": e,
         "seconds": n**2 * d**3 / w, "planned s": n * d**3 / w}
        for n, d, w, e in (
            (10, 8, 1, "none"), (20, 8, 1, "none"), (40, 8, 1, "none"), (20, 16, 1, "none"),
            (20, 8, 2, "none"), (80, 8, 1, "exact"),
        )
    ]  # fmt: skip
    found = {row["variable"]: row for row in planned.exponents(stages)}
    assert (found["sketch"]["from"], found["sketch"]["to"]) == (10, 40)
    assert found["sketch"]["exponent"] == pytest.approx(2)
    assert found["sketch"]["planned exponent"] == pytest.approx(1)
    assert found["box"]["exponent"] == pytest.approx(3)
    assert found["workers"]["exponent"] == pytest.approx(-1)
    assert planned.exponents([row | {"seconds": 0.1} for row in stages]) == []


def test_exponents_are_those_that_were_put_in():
    rows = [
        {"stage": "a", "n": n, "p": p, "seconds": 1e-6 * n**2 * p, "planned s": 2e-6 * n**2 * p,
         "peak MiB": 100.0, "planned MiB": 150.0}
        for n, p in ((10, 5), (20, 5), (40, 5), (20, 10), (20, 20))
    ]  # fmt: skip
    rows += [{"stage": "decoding", "n": 1, "D": d, "seconds": 1e-3 * d**3} for d in (8, 16)]
    found = {(row["stage"], row["variable"]): row for row in growth.exponents(rows)}
    assert found["a", "n"]["exponent"] == pytest.approx(2)
    assert found["a", "p"]["planned exponent"] == pytest.approx(1)
    assert found["a", "n"]["planned / measured s"] == pytest.approx(2)
    assert found["a", "p"]["planned / measured MiB"] == pytest.approx(1.5)
    assert found["decoding", "D"]["exponent"] == pytest.approx(3)
