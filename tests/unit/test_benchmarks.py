"""The benchmarks at their tiny size, so that none rots."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import decode
import gpu_check
import growth
import harness
import landscape_full
import linkage
import million
import pca
import planned
import plots
import pytest
import random_model
import results
import store
import torch
import whole_run
from harness import Panel, Row
from scipy.spatial.distance import pdist, squareform

from scapedist import open_model

UMAP = """
from scipy.sparse import eye

class UMAP:
    def __init__(self, n_neighbors):
        pass

    def fit_transform(self, rows):
        self.graph_ = eye(len(rows), k=1, format="csr")
        return rows[:, :2]
"""


@pytest.fixture
def one_thread(monkeypatch):
    """Torch on one thread, in commands too: two wait for each other where tests share cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with harness.n_threads(1):
        yield


# -- what each finds at its tiny size


def of_decode(found: Row) -> None:
    assert [row["model"] for row in found["rows"]] == list(decode.SIZES["tiny"])
    for row in found["rows"]:
        assert row["relative_error"] < 1e-5
        assert row["times_as_fast"] > 0
        assert row["fraction"] > 0


def of_whole_run(found: Row) -> None:
    theirs, ours = found["rows"]
    assert [row["program"] for row in (theirs, ours)] == ["cryodrgn", "scapedist"]
    for row in (theirs, ours):
        assert row["sketch"] == 30
        assert min(row["seconds"], row["cpu seconds"]) > 0.5
        assert row["peak MiB"] > 0.8 * row["idle MiB"] > 40
        assert row["above idle MiB"] == row["peak MiB"] - row["idle MiB"]
        assert row["disk MiB"] > 30 * 16**3 * 4 / 2**20  # its volumes
    (ratios,) = found["ratios"]
    assert ratios["time"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert ratios["disk"] == pytest.approx(theirs["disk MiB"] / ours["disk MiB"])


def of_memory(found: Row) -> None:
    assert [row["sketch"] for row in found["rows"]] == [12, 48]
    first, last = (row["peak MiB"] for row in found["rows"])
    assert 0.5 < last / first < 2
    for row in found["rows"]:
        assert 50 < row["largest process MiB"] <= row["peak MiB"]


def of_truth(found: Row) -> None:
    assert {row["kind"] for row in found["rows"]} == {"LID-less", "rare"}
    assert all(0 <= row["recall of best"] <= 1 for row in found["rows"])


def of_embedding(found: Row) -> None:
    assert [row["method"] for row in found["methods"]][0] == "reduced"
    assert all(row["relative error"] > 0 for row in found["methods"])
    assert [row["what"] for row in found["pace"]] == ["decoding alone", "exact", "reduced"]
    assert [row["box"] for row in found["box"]] == [8, 12]
    assert [row["method"] for row in found["missed"]] == ["reduced", "exact"] * 2
    for row in found["missed"]:
        assert row["of the kind"] <= row["particles"]


def of_store(found: Row) -> None:
    rows = {(row["what"], row["stored"], row["way"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    n_values = {"whole": 16**3, "masked": 16**3 // 4}
    for (what, stored, way), row in rows.items():
        mib = 4 * n_values[stored] / 2**20
        assert row["MiB/s"] == pytest.approx(1e3 * mib / row["ms a volume"])
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


def of_pca(found: Row) -> None:
    *measured, missing = found["rows"]
    assert missing["error"] == "ModuleNotFoundError: No module named 'dask_ml'"
    for row in measured:
        assert (row["rows"], row["voxels"], row["processes"], row["error"]) == (60, 500, 1, "")
        assert row["seconds"] > 0
        assert 0 < row["above idle MiB"] < 50
        bound = 1e-10 if row["method"] in pca.OURS else 1e-4  # rounding of float64, of float32
        assert max(row["angle"], row["variance error"]) < bound
    assert found["targets"] == []


def of_linkage(found: Row) -> None:
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


def of_growth(found: Row) -> None:
    stages = {row["stage"] for row in found["measured"]}
    assert stages == {"components, gram", "components, iteration", "states, average", "decoding",
                      "sketch"}  # fmt: skip
    for row in found["rows"]:
        assert -5 < row["exponent"] < 5
        assert row["from"] < row["to"]
    (many,) = found["many"]
    assert many["solver"] == "gram"
    assert many["joined from"] == "distances of all pairs"
    assert 0.05 < many["peak GiB"] < many["planned GiB"] < 2


def of_planned(found: Row) -> None:
    (row,), stages = found["rows"], found["stages"]
    assert row["sketch"] == 30
    assert 0.8 < row["planned / measured disk"] < 1.5
    assert 0.8 < row["planned / measured files"] < 1.25
    assert 0.8 < row["planned / measured MiB"] < 2
    assert row["seconds"] > 1
    assert sum(each["seconds"] for each in stages) == pytest.approx(row["seconds"])
    assert sum(each["planned s"] for each in stages) == pytest.approx(row["planned s"])


def of_million(found: Row) -> None:
    assert found["failures"] == []
    assert [row["stage"] for row in found["stages"]] == list(million.STAGES)
    assert all(row["cpu seconds"] > 0.5 for row in found["stages"])
    (whole,) = found["whole"]
    assert 100 < whole["largest process MiB"] < 1024
    assert 5 < whole["report MiB"] < 20
    assert found["exponents"] == []  # of one size


def of_gpu_check(found: Row) -> None:
    assert found["failures"] == []
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


def of_landscape_full(found: Row) -> None:
    rows = {(row["program"], row["training volumes"]): row for row in found["rows"]}
    full, both, default = "analyze_landscape_full", "both", 10_000
    names = [(name, n) for n in (100, default) for name in (full, both)]
    assert set(rows) == {("scapedist", ""), ("analyze_landscape", ""), *names}
    for (_, n), row in rows.items():
        assert row["extrapolated"] == (n == default)
        assert row["peak MiB"] > 0.8 * row["idle MiB"] > 40
    first, ours = rows["analyze_landscape", ""], rows["scapedist", ""]
    (pace,) = found["pace"]
    assert 0 <= pace["growing, s"] < rows[full, 100]["seconds"]
    expected = rows[full, 100]["seconds"] + 99 * pace["growing, s"]
    assert rows[full, default]["seconds"] == pytest.approx(expected)
    for n in (100, default):
        assert rows[both, n]["seconds"] == first["seconds"] + rows[full, n]["seconds"]
        assert rows[both, n]["disk MiB"] > max(first["disk MiB"], rows[full, n]["disk MiB"])
    assert [row["extrapolated"] for row in found["ratios"]] == [False, True]
    assert found["ratios"][0]["time"] == rows[both, 100]["seconds"] / ours["seconds"]
    exact, guessed = found["accuracy"]
    assert exact["program"] == "scapedist, exact"  # its default for few particles
    assert exact["relative error"] < 1e-5
    assert guessed["training volumes"] == 100
    assert 1e-3 < guessed["relative error"] < 1  # 1: of the mean alone


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # cryoDRGN's
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("decode", {"threads": [1]}),
        ("whole_run", {"workers": 1}),
        ("memory", {}),
        ("truth", {}),
        ("embedding", {}),
        ("store", {}),
        ("pca", {"only": (pca.GRAM, pca.PASSES, pca.FULL, "dask-ml, PCA"), "workers": 1}),
        ("linkage", {}),
        ("growth", {}),
        ("planned", {}),
        ("million", {}),
        ("gpu_check", {"device": "cpu"}),
        pytest.param("landscape_full", {"workers": 1}, marks=pytest.mark.slow),
    ],
)
def test_tiny(one_thread, tmp_path, monkeypatch, capsys, name, options):
    (tmp_path / "umap.py").write_text(UMAP)  # cryoDRGN's other half a minute is its compilation
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "dask_ml.py").write_text("raise ModuleNotFoundError(\"No module named 'dask_ml'\")")
    if name == "landscape_full":  # that of whole_run measures these
        monkeypatch.setattr(whole_run, "idle_mib", lambda _: {"cryodrgn": 60, "scapedist": 61})
    output = tmp_path / "new" / f"{name}.json"
    found = harness.benchmark(name, "tiny", output, **options)
    globals()[f"of_{name}"](found)
    printed = capsys.readouterr().out
    assert "\n\n".join(harness.tables(sys.modules[name], found)) in printed
    for table in sys.modules[name].TABLES:  # what is declared is measured; boxes have their points
        measured = set().union(*harness.chosen(found, table), ("error",))
        columns = {column.partition(": ")[0] for column in table.columns.split(" | ")}
        missing = {column for column in columns - measured if not column.endswith("points")}
        assert not missing or not harness.chosen(found, table)
    written = json.loads(output.read_text())
    assert written == found
    assert written["benchmark"] == name
    assert written["machine"]["versions"]["torch"]
    # what is written is a section of the page, by the script's own title and columns
    page = tmp_path / "RESULTS.md"
    assert results.run(output.parent, page) == [name]
    text = page.read_text()
    assert f"## {sys.modules[name].TITLE}" in text
    assert "\n| " in text
    assert str(tmp_path) not in text
    assert all(f"(plots/{plot.name})" in text for plot in tmp_path.glob("plots/*.png"))


def test_every_benchmark_has_its_tiny_size_and_place():
    folder = Path(harness.__file__).parent
    scripts = {path.stem for path in folder.glob("*.py") if "harness.main(" in path.read_text()}
    assert scripts == set(results.ORDER)


# -- the harness


def test_the_command_line(monkeypatch, tmp_path, capsys):
    output, before = tmp_path / "found.json", torch.get_num_threads()
    options = ["--size", "tiny", "--only", "D=16 3x32", "--threads", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["benchmarks/decode.py", *options])
    monkeypatch.setattr("logging.disable", lambda level: None)
    found = harness.main("decode")
    assert json.loads(output.read_text()) == found
    assert [(row["model"], row["threads"]) for row in found["rows"]] == [("D=16 3x32", 1)]
    assert found["machine"]["command"] == "decode.py --size tiny --only 'D=16 3x32' --threads 1"
    assert capsys.readouterr().out.startswith("load average")
    assert torch.get_num_threads() == before


def test_tables():
    rows = [{"a": 1, "b": 0.5, "c": None}, {"a": 20, "b": "x"}]
    table = harness.markdown(rows, "b: second | a | c | d")
    assert table.splitlines() == ["| second |  a |", "| ------ | -: |", "| 0.500  |  1 |",
                                  "| x      | 20 |"]  # fmt: skip
    assert harness.markdown([], "a") == harness.markdown(rows, "c") == ""
    given = (12345, 1234.5, 12.345, 0.0012345, 1.2345e-7, 0.0, True, "a|b", None, [1])
    shown = ["12,345", "1,234", "12.3", "0.00123", "1.2e-07", "0", "yes", "a\\|b", "", ""]
    assert [harness.cell(value) for value in given] == shown
    command = "/there/store.py --size full --output=/x.json --place '/a b' --plot /y.png"
    assert harness.command(command) == "store.py --size full"


def test_what_else_the_machine_did_is_measured():
    work = "import time\nend = time.time() + 2\nwhile time.time() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", work])
    measured = harness.measure(["sleep", "1"])
    other.wait()
    assert measured["cpu seconds"] < 0.2 < measured["others' cpu seconds"]


def test_files_are_counted_once(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "volume").write_bytes(bytes(1000))
    assert harness.disk_bytes(tmp_path) == 1000
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "volume")
    assert 1000 < harness.disk_bytes(tmp_path) < 2000


def test_the_peak_of_a_process():
    before = harness.reset_peak()
    held = bytearray(64 * 2**20)
    del held
    assert 60 * 2**20 < harness.peak_bytes() - before < 80 * 2**20
    assert harness.reset_peak() < before + 20 * 2**20


# -- models with random weights


@pytest.mark.parametrize("command", random_model.COMMANDS)
def test_random_models(tmp_path, command):
    options = {"box_size": 8, "width": 8, "zdim": 2, "n_particles": 5, "with_indices": True}
    model = open_model(random_model.write_random_model(tmp_path, command, **options), 19)
    assert model.latents.shape == (5, 2)
    assert model.stack_indices.tolist() == [1, 3, 5, 7, 9]


def test_random_models_are_always_the_same(tmp_path):
    first, again = (
        open_model(random_model.write_random_model(tmp_path / name, box_size=8), 19)
        for name in "ab"
    )
    assert (first.latents == again.latents).all()
    assert (first.decode(first.latents[:1]) == again.decode(first.latents[:1])).all()


# -- parts of single benchmarks


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


def test_gpu_check_goes_on_after_a_failure(monkeypatch, capsys):
    def broken(check):
        raise RuntimeError("no such card")

    monkeypatch.setattr(gpu_check, "SECTIONS", {"broken": broken, "error": gpu_check.correctness})
    found = harness.benchmark("gpu_check", "tiny", device="cpu")
    assert found["failures"] == [{"section": "broken", "error": "RuntimeError: no such card"}]
    assert found["rows"]
    assert "FAILED:" in capsys.readouterr().out
    late = gpu_check.run("tiny", "cpu", seconds=0)["failures"][0]
    assert late == {"section": "broken", "error": "no time was left"}


def test_gpu_check_needs_few_packages():
    """It starts where neither cryoDRGN nor Dask, Zarr or scikit-learn is installed."""
    code = """
import sys
for name in ("cryodrgn", "dask", "distributed", "zarr", "sklearn", "typer", "rich", "mrcfile"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import gpu_check, harness
keep = ("matrix rate", "error", "gram", "linkage", "overlap", "run")
gpu_check.SECTIONS = {name: gpu_check.SECTIONS[name] for name in keep}
found = harness.benchmark("gpu_check", "tiny", device="cpu")
assert not found["failures"], found["failures"]
assert "run" not in {row["section"] for row in found["rows"]}
assert any("plain files" in row["what"] for row in found["rows"])
"""
    place = str(Path(gpu_check.__file__).parent)
    subprocess.run([sys.executable, "-c", code, place], check=True, capture_output=True)


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


def test_store_compares_what_it_read(monkeypatch):
    sound = store.read_rows
    monkeypatch.setattr(store, "read_rows", lambda *given: 2 * sound(*given))
    with pytest.raises(RuntimeError, match="scapedist: volume 0 is not what was written"):
        store.run("tiny")


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


def test_pca_targets_of_each_number_of_processes():
    def row(method, processes, seconds):
        return {"case": "a", "method": method, "processes": processes, "seconds": seconds,
                "angle": 1e-7, "above idle MiB": 10 * seconds}  # fmt: skip

    ways = ((pca.GRAM, 1, 6), (pca.GRAM, 2, 3), (pca.FULL, 1, 4), (pca.RANDOMIZED, 1, 2))
    found = pca.targets([row(*way) for way in ways])
    for n, met in ((1, False), (2, True)):
        angle, full, randomized, memory = (r for r in found if r["processes"] == n)
        assert angle["met"]
        assert (full["met"], randomized["met"], memory["met"]) == (met, met, False)
        assert full["found"] == (0.75 if met else 1.5)
        assert memory["found"] == (1.5 if met else 3)


def test_pca_by_two_processes_and_what_fails(tmp_path):
    group = pca.make_store(pca.Case(70, voxels=300), tmp_path)
    result = tmp_path / "found.npz"
    assert harness.alone("pca", pca.GRAM, 2, group, group, result)["bytes"] > 0
    vectors, variance = pca.exact(group)
    assert max(pca.errors(result, (vectors, variance)).values()) < 1e-10
    turned = vectors.copy()
    turned[0] += 1e-3 * pca.exact(group, 21)[0][-1]
    wrong = pca.errors(result, (turned, variance * 1.01))
    assert wrong == pytest.approx({"angle": 1e-3, "variance error": 0.01 / 1.01}, rel=1e-3)
    found = harness.alone("pca", pca.GRAM, 1, *["/nowhere"] * 3)
    assert "nowhere" in found["error"]
    with pytest.raises(RuntimeError, match="^AttributeError: .*'nobody'"):
        harness.alone("pca", child="nobody")


def test_linkage_is_given_distances_and_told_of_other_trees(tmp_path):
    linkage.write_points(tmp_path / "points", 300)
    given = {make.__name__: make(tmp_path / "points") for make in
             (linkage.points, linkage.distances, linkage.square)}  # fmt: skip
    exact = pdist(given["points"])
    assert given["distances"] == pytest.approx(exact, rel=1e-12)
    assert given["square"] == pytest.approx(squareform(exact) ** 2, rel=1e-12)
    trees = [linkage.by_scipy(method, exact) for method in ("average", "ward", "complete")]
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


# -- the page of results


def test_results_page_says_what_it_leaves_out(tmp_path, capsys):
    measured, folder = Path(results.__file__).parent / "results", tmp_path / "results"
    folder.mkdir()
    shutil.copy(measured / "decode.json", folder / "any name.json")  # it says what it is of
    shutil.copy(measured / "decode.json", folder)
    shutil.copy(measured / "truth.json", folder)
    (folder / "store.json").write_text('{"rows": [')
    (folder / "weather.json").write_text('{"rows": [{"rain": 1}]}')
    assert results.run(folder, tmp_path / "page" / "RESULTS.md") == ["decode", "truth"]
    twice, broken, unknown = capsys.readouterr().out.splitlines()
    assert twice == "left out: decode.json (there is another of decode)"
    assert broken.startswith("left out: store.json (")
    assert unknown == "left out: weather.json (not of a benchmark known here)"
    page = (tmp_path / "page" / "RESULTS.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## Decoding", "## States against the truth"]
    row = json.loads((measured / "decode.json").read_text())["rows"][0]
    line = next(line for line in page.splitlines() if line.startswith("| bundled "))
    for key in ("times_as_fast", "relative_error"):
        assert f" {harness.cell(row[key])} |" in line
    data = (tmp_path / "page" / "plots" / "decode.png").read_bytes()
    assert data.startswith(b"\x89PNG")


def test_results_of_other_rows_are_no_reason_to_stop(tmp_path):
    assert results.run(tmp_path, tmp_path / "RESULTS.md") == []
    for name in results.ORDER:
        (tmp_path / f"{name}.json").write_text('{"rows": [{"other": 1.5}], "scaling": 3}')
    assert results.run(tmp_path, tmp_path / "RESULTS.md") == results.ORDER
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| other |" not in page
    assert "![" not in page


def test_what_is_measured_today_is_on_the_page(tmp_path):
    """The page in the repository is what its results and its scripts make of it."""
    folder = Path(results.__file__).parent
    results.run(folder / "results", tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == (folder / "RESULTS.md").read_text()


def test_plots_are_against_two_sizes_and_more():
    rows = [
        {"n": n, "program": program, "linkage": linkage, "seconds": n * factor, "MiB": ""}
        for program, factor in (("a", 1.0), ("b", 2.0))
        for linkage in ("ward", "single", "ward")
        for n in (1000, 10)
    ]
    panel = Panel("rows", "n", "{program}", {"seconds": "", "MiB": "planned"}, "s", "n",
                  {"program": "b"}, ("linkage",))  # fmt: skip
    (name,) = found = plots.points(panel, {"rows": rows})
    assert name == "b"
    assert {(point["x"], point["y"]) for point in found["b"]} == {(10, 20), (1000, 2000)}
    assert plots.points(panel, {"rows": rows[::2]}) == {}
    beside = Panel("rows", "program", "", "seconds", "s")
    assert [point["x"] for point in plots.points(beside, {"rows": rows[::6]})[""]] == ["a", "b"]
