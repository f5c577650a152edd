"""The report: it shows what the arrays hold, opens offline, and leaves nothing half-made."""

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from scapedist import backend
from scapedist.errors import InputError, RunError
from scapedist.report import images, plots
from scapedist.report.digest import principal_axes, read_digest, read_traversals, sample_of_states
from scapedist.report.mosaics import thumbnail
from scapedist.report.report import write_report

D, N, N_PARTICLES, M, R = 16, 30, 600, 4, 6
SECTIONS = [
    "states",
    "landscape",
    "all-particles",
    "components",
    "state-maps",
    "traversals",
    "latent-space",
    "mask",
    "sketch-quality",
    "record",
]
PLOTS = {
    "coordinates.png",
    "latent_pca.png",
    "mask.png",
    "scree.png",
    "sketch_quality.png",
    "states_differences.png",
    "states_projections.png",
    "states_sizes.png",
    "states_slices.png",
    "traversal_projections.png",
    "traversal_slices.png",
}


def put(group: zarr.Group, name: str, values: object, one_a_chunk: bool = False) -> None:
    values = np.asarray(values)
    chunks = (1, *values.shape[1:]) if one_a_chunk else values.shape
    fill = np.nan if values.dtype.kind == "f" else 0
    group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=chunks, fill_value=fill
    )[...] = values


def make_run(path: Path, store: str = "volumes") -> zarr.Group:
    """Make a small run whose volumes really have states: a blob that moves, or is not there."""
    rng = np.random.default_rng(11)
    label = np.repeat(np.arange(M), [15, 9, 5, 1]).astype(np.int32)
    label[29] = 3
    label[28] = -1  # excluded
    z, y, x = np.indices((D, D, D)) - D / 2

    def blob(at: float, height: float) -> np.ndarray:
        return height * np.exp(-((z - 1) ** 2 + y**2 + (x - at) ** 2) / 6)

    volumes = np.stack(
        [
            blob(-2, 1) + blob(state + rng.normal(0, 0.2), 0.8) + rng.normal(0, 0.01, (D, D, D))
            for state in label
        ]
    ).astype(np.float32)
    mask = (volumes.max(0) > 0.3).astype(np.float32)
    values = volumes[:, mask > 0].astype(np.float64)
    mean = values.mean(0)
    left, singular, right = np.linalg.svd(values - mean, full_matrices=False)
    coordinates = (left * singular)[:, :R]
    assignment = rng.integers(0, N, N_PARTICLES).astype(np.int32)
    assignment[:N] = np.arange(N)
    assignment[-5:] = -1
    latents = rng.normal(size=(N_PARTICLES, 3)).astype(np.float32) + label[assignment, None]
    occupancy = np.bincount(assignment[assignment >= 0], minlength=N)
    states = range(M)
    positions = np.stack([np.linspace(c.min(), c.max(), 5) for c in coordinates.T[:2]])
    nearest = np.abs(coordinates.T[:2, None] - positions[..., None]).argmin(-1)

    group = zarr.create_group(path)
    put(group, "latents", latents)
    put(group, "sketch/particle", rng.permutation(N_PARTICLES)[:N])
    put(group, "sketch/assignment", assignment)
    put(group, "sketch/occupancy", occupancy)
    put(group, "sketch/coordinates", coordinates)
    put(group, "sketch/quality/group", np.repeat([0, 3], 3).astype(np.int32))
    put(group, "sketch/quality/particle", np.arange(6))
    put(group, "sketch/quality/distance", np.array([0.1, 0.2, 0.3, 0.2, 0.4, 0.3]))
    put(group, "sketch/quality/between", np.array([0.9, 1.0, 1.1]))
    if store == "volumes":
        put(group, "volumes/0", volumes, one_a_chunk=True)
    else:
        put(group, "volumes/masked", values.astype(np.float32), one_a_chunk=True)
    put(group, "mask", mask)
    put(group, "mask_claims", (volumes > 0.4).mean(0, dtype=np.float32))
    put(group, "components/mean", mean)
    put(group, "components/vectors", right[:R].astype(np.float32))
    put(group, "components/variance", singular[:R] ** 2 / (N - 1))
    put(group, "components/variance_ratio", (singular**2 / (singular**2).sum())[:R])
    put(group, "components/included", label >= 0)
    put(group, "components/traversal_position", positions)
    put(group, "components/traversal_volume", nearest)
    put(group, "states/label", label)
    put(group, "states/n_volumes", np.bincount(label[label >= 0], minlength=M))
    put(group, "states/n_particles", [occupancy[label == s].sum() for s in states])
    put(group, "states/medoid", [np.flatnonzero(label == s)[0] for s in states])
    put(group, "states/mean", np.stack([volumes[label == s].mean(0) for s in states]), True)
    group.attrs["scapedist"] = {
        "source": {
            "workdir": "/data/<script>alert('x')</script>",
            "epoch": 14,
            "pixel_size_angstroms": 2.5,
            "hashes": {"weights.14.pkl": "c0ffee"},
        },
        "stages": {
            "generate": {
                "settings": {"dtype": "float16", "note": "<b>&"},
                "fingerprint": "f1f2",
                "versions": {"torch": "2.13.0"},
                "seconds": 12.345,
                "finished": "2026-01-02T03:04:05+00:00",
                "results": {"precision_error": 0.000321},
            }
        },
    }
    return group


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory that holds ``landscape.zarr`` and its report."""
    directory = tmp_path_factory.mktemp("run")
    write_report(make_run(directory / "landscape.zarr"), directory)
    return directory


@pytest.fixture
def run(tmp_path: Path, made: Path) -> zarr.Group:
    """Give a copy of the run, to change."""
    shutil.copytree(made / "landscape.zarr", tmp_path / "landscape.zarr")
    return zarr.open_group(tmp_path / "landscape.zarr", mode="r+")


class Page(HTMLParser):
    """Collects what a page refers to and shows; fails where tags do not fit."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.data: dict[str, dict] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.references += [found[key] for key in ("src", "href", "action", "data") if key in found]
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            if data.startswith("{"):
                self.data[self.ids[-1]] = json.loads(data)
        elif "style" not in self.open:
            self.words.append(data)
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


def decode(encoded: dict) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(encoded["bdata"]), "<" + encoded["dtype"])
    return (
        values.reshape([int(n) for n in encoded["shape"].split(",")])
        if "shape" in encoded
        else values
    )


def group_of(directory: Path) -> zarr.Group:
    return zarr.open_group(directory / "landscape.zarr", mode="r")


def test_the_page_asks_the_network_for_nothing(made: Path):
    page = page_of(made)
    assert page.references
    assert all(ref.startswith(("data:image/png;base64,", "#")) for ref in page.references)
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "connect-src" not in text.split("</head>")[0]
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert not re.search(r"url\(|@import", styles[0])
    assert len(text) > 1_000_000, "plotly.js is not in the page"


def test_every_section_is_there_and_linked(made: Path):
    page = page_of(made)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert [ref[1:] for ref in page.references if ref.startswith("#")] == SECTIONS
    assert len(page.ids) == len(set(page.ids))


def test_the_table_of_states_shows_the_arrays(made: Path):
    group, rows = group_of(made), page_of(made).rows
    start = next(i for i, row in enumerate(rows) if row and row[0] == "state")
    particle = group["sketch/particle"][...]
    for state in range(M):
        medoid = group["states/medoid"][state]
        shown = rows[start + 1 + state]
        n_particles = group["states/n_particles"][state]
        assert shown[:3] == [str(state), str(group["states/n_volumes"][state]), str(n_particles)]
        assert shown[3] == f"{100 * n_particles / N_PARTICLES:.1f} %"
        assert shown[4] == f"volume {medoid} (particle {particle[medoid]})"
    none = rows[start + 1 + M]
    assert none[:2] == ["none", "1"]
    assert int(none[2]) == N_PARTICLES - group["states/n_particles"][...].sum()


def test_the_summary_shows_the_arrays(made: Path):
    group, words = group_of(made), " ".join(page_of(made).words)
    for expected in [
        "600",
        "16³ voxels",
        "2.5 Å",
        f"{np.count_nonzero(group['mask'][...])} voxels",
        f"{100 * group['components/variance_ratio'][:3].sum():.1f} %",
        "1 of the sketch volumes were excluded",
    ]:
        assert expected in words


def test_the_scatter_holds_every_volume_with_its_numbers(made: Path):
    group, figure = group_of(made), page_of(made).data["sketch"]
    coordinates = group["sketch/coordinates"][...]
    assert len(figure["axes"]) == R
    seen = []
    for trace in figure["data"]:
        volume, particle, occupancy = decode(trace["customdata"]).T
        seen += volume.tolist()
        state = -1 if trace["name"] == "none" else int(trace["name"].removeprefix("state "))
        assert (group["states/label"][...][volume] == state).all()
        assert trace["marker"]["color"] == plots.colour_of(state)
        np.testing.assert_array_equal(particle, group["sketch/particle"][...][volume])
        np.testing.assert_array_equal(occupancy, group["sketch/occupancy"][...][volume])
        for k in range(R):
            np.testing.assert_allclose(decode(trace["columns"][k]), coordinates[volume, k], 1e-6)
    assert sorted(seen) == list(range(N))


def test_the_scree_plot_holds_the_shares(made: Path):
    each, together = page_of(made).data["scree"]["data"]
    ratio = group_of(made)["components/variance_ratio"][...]
    np.testing.assert_allclose(decode(each["y"]), 100 * ratio, rtol=1e-6)
    np.testing.assert_allclose(decode(together["y"]), 100 * np.cumsum(ratio), rtol=1e-6)


def test_latent_space_has_each_particle_in_its_state(made: Path):
    group, figure = group_of(made), page_of(made).data["latent-pca"]
    assignment, label = group["sketch/assignment"][...], group["states/label"][...]
    seen = []
    for trace in figure["data"]:
        particle, volume = decode(trace["customdata"]).T
        seen += particle.tolist()
        np.testing.assert_array_equal(volume, assignment[particle])
        state = -1 if trace["name"] == "none" else int(trace["name"].removeprefix("state "))
        assert (np.where(volume >= 0, label[volume], -1) == state).all()
    assert sorted(seen) == list(range(N_PARTICLES))


def test_the_record_is_shown_whole(made: Path):
    rows = page_of(made).rows
    for expected in [
        ["generate", "12.35 s", "2026-01-02 03:04:05+00:00"],
        ["hashes.weights.14.pkl", "c0ffee"],
        ["settings.dtype", "float16"],
        ["settings.note", "<b>&"],
        ["results.precision_error", "0.000321"],
        ["versions.torch", "2.13.0"],
    ]:
        assert expected in rows


def test_strings_are_escaped(made: Path):
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "/data/<script>alert('x')</script>, epoch 14" in page_of(made).words


def test_the_plots_are_images(made: Path):
    assert {path.name for path in (made / "plots").iterdir()} == PLOTS
    for path in (made / "plots").iterdir():
        with Image.open(path) as image:
            image.load()
            assert np.asarray(image.convert("L")).std() > 1, f"{path.name} is empty"


def test_the_same_run_gives_the_same_bytes(made: Path, tmp_path: Path):
    write_report(group_of(made), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (made / "report.html").read_bytes()
    for name in PLOTS:
        assert (tmp_path / "plots" / name).read_bytes() == (made / "plots" / name).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_both_stores_show_the_same_traversals(made: Path, tmp_path: Path):
    write_report(make_run(tmp_path / "landscape.zarr", "masked"), tmp_path)
    for name in ("traversal_projections.png", "traversal_slices.png"):
        assert (tmp_path / "plots" / name).read_bytes() == (made / "plots" / name).read_bytes()


def test_volumes_that_are_not_shown_are_not_read(made: Path, tmp_path: Path, run: zarr.Group):
    shown = set(run["components/traversal_volume"][...].ravel().tolist())
    for index in set(range(N)) - shown:  # a chunk that is not there would read as NaN
        shutil.rmtree(tmp_path / "landscape.zarr/volumes/0/c" / str(index))
    write_report(run, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (made / "report.html").read_bytes()


def test_what_is_missing_is_left_out_and_said(tmp_path: Path, run: zarr.Group):
    write_report(run, tmp_path)
    for name in ("sketch/quality", "mask_claims", "components/traversal_volume"):
        del run[name]
    record = dict(run.attrs["scapedist"])
    record["source"] = {**record["source"], "pixel_size_angstroms": None}
    run.attrs["scapedist"] = record
    (tmp_path / "plots" / "own.png").write_bytes(b"a person's own")
    write_report(run, tmp_path)
    words = " ".join(page_of(tmp_path).words)
    assert "This run holds no check of the sketch's quality." in words
    assert "This run holds no traversals." in words
    assert "no volumes' claims" in words
    assert "unknown pixel size" in words
    gone = {"sketch_quality.png", "traversal_projections.png", "traversal_slices.png"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == PLOTS - gone | {"own.png"}


def test_one_state_and_one_component(tmp_path: Path, run: zarr.Group):
    label = np.zeros(N, np.int32)
    changed = {
        "states/label": label,
        "states/n_volumes": [N],
        "states/n_particles": [N_PARTICLES - 5],
        "states/medoid": [2],
        "states/mean": run["states/mean"][:1],
        "sketch/coordinates": run["sketch/coordinates"][:, :1],
        "components/variance_ratio": run["components/variance_ratio"][:1],
        "components/traversal_position": run["components/traversal_position"][:1],
        "components/traversal_volume": run["components/traversal_volume"][:1],
    }
    for name, values in changed.items():
        del run[name]
        put(run, name, values)
    write_report(run, tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == PLOTS - {
        "states_differences.png"
    }
    figure = page_of(tmp_path).data["sketch"]
    assert len(figure["axes"]) == 2
    assert len(set(figure["axes"])) == 1


def test_coordinates_of_excluded_volumes_may_be_nan(tmp_path: Path, run: zarr.Group):
    coordinates = run["sketch/coordinates"][...]
    coordinates[28] = np.nan
    run["sketch/coordinates"][...] = coordinates
    write_report(run, tmp_path)
    page_of(tmp_path)


@pytest.mark.parametrize("name", ["states/label", "mask", "components/vectors", "latents"])
def test_a_stage_that_is_missing(tmp_path: Path, run: zarr.Group, name: str):
    del run[name]
    with pytest.raises(RunError, match=f"has no {name}"):
        write_report(run, tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "plots").exists()


def test_components_of_another_mask(tmp_path: Path, run: zarr.Group):
    mask = run["mask"][...]
    mask[0, 0, 0] = 1
    run["mask"][...] = mask
    with pytest.raises(RunError, match="Run the stage pca again"):
        write_report(run, tmp_path)


def test_umap_that_is_not_installed(tmp_path: Path, run: zarr.Group, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="umap-learn"):
        write_report(run, tmp_path, umap=backend.umap)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_umap(tmp_path: Path, run: zarr.Group):
    pytest.importorskip("umap")
    write_report(run, tmp_path, umap=backend.umap)
    figure = page_of(tmp_path).data["latent-umap"]
    assert figure["axes"] == ["UMAP 1", "UMAP 2"]
    assert sum(len(decode(trace["columns"][0])) for trace in figure["data"]) == N_PARTICLES
    assert (tmp_path / "plots" / "latent_umap.png").exists()
    write_report(run, tmp_path)
    assert not (tmp_path / "plots" / "latent_umap.png").exists()


def test_a_traversal_is_mean_and_component_beside_the_real_volumes(made: Path):
    group = group_of(made)
    digest = read_digest(group)
    inside = group["mask"][...] > 0
    for k, traversal in enumerate(read_traversals(digest, 5, 10)):
        for point, position in enumerate(traversal.position):
            volume = np.zeros((D, D, D))
            volume[inside] = group["components/mean"][...]
            volume[inside] += position * group["components/vectors"][k]
            real = group["volumes/0"][int(traversal.volume[point])] * inside
            axis = traversal.direction["projections"]
            for picture, of in [(traversal.synthetic, volume), (traversal.real, real)]:
                expected = digest.view.crop(of).sum(axis)[::-1]
                np.testing.assert_allclose(picture["projections"][point], expected, atol=1e-4)


def test_a_sample_keeps_rare_states():
    labels = np.repeat([0, 1, 2, -1], [9000, 900, 20, 80])
    rows = sample_of_states(labels, 1000, 30, seed=3)
    counts = np.bincount(labels[rows] + 1, minlength=4)
    assert 1000 <= len(rows) <= 1060
    assert counts[3] == 20, "all of the rare state"
    assert 850 < counts[1] < 950, "the large state in proportion"
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_of_states(labels, 1000, 30, seed=3))
    assert len(np.setdiff1d(rows, sample_of_states(labels, 1000, 30, seed=4)))
    np.testing.assert_array_equal(sample_of_states(labels, 10_000, 30, 0), np.arange(10_000))


def test_principal_axes_are_those_of_the_svd():
    latents = (np.random.default_rng(1).normal(size=(500, 4)) * [1, 5, 2, 0.1]).astype(np.float32)
    mean, axes, share = principal_axes(latents)
    singular, right = np.linalg.svd(latents - latents.mean(0), full_matrices=False)[1:]
    np.testing.assert_allclose(mean, latents.mean(0), atol=1e-5)
    np.testing.assert_allclose(share, singular**2 / (singular**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(np.abs(axes.T), np.abs(right), atol=1e-3)


def test_the_view_holds_the_mask_and_its_pictures_stand_upright():
    mask = np.zeros((20, 20, 20))
    mask[12:17, 3:9, 2:6] = 1
    view = images.view_of_mask(mask)
    assert view.crop(mask).sum() == mask.sum()
    assert view.side == 8
    assert view.centre == (14, 6, 4) or view.centre == (14, 5, 3)
    volume = np.zeros((20, 20, 20), np.float32)
    volume[14, 8, 5] = 1  # high in y
    along_z = view.projections(volume)[0]
    row, column = np.argwhere(along_z == 1)[0]
    assert view.side - 1 - row == 8 - view.start[1]
    assert column == 5 - view.start[2]


def test_pictures_of_large_boxes_are_small():
    mask = np.ones((40, 40, 40), np.float32)
    view = images.View((0, 0, 0), 40, (20, 20, 20), max_side=16)
    assert view.projections(mask).shape == (3, 13, 13)
    assert (view.projections(mask) == 40).all()
    assert (view.slices(mask) == 1).all()


@pytest.mark.parametrize(
    ("side", "pixel_size", "words"), [(48, 2.5, "20 Å"), (48, None, "10 voxels"), (300, 1, "100 Å")]
)
def test_scale_bars_are_round(side: int, pixel_size: float | None, words: str):
    view = images.View((0, 0, 0), side, (0, 0, 0))
    length, label = images.scale_bar(view, pixel_size)
    assert label == words
    assert length * side * (pixel_size or 1) == pytest.approx(float(words.split()[0]))


def test_forty_states_look_different():
    looks = {(plots.colour_of(state), plots.marker_number(state)) for state in range(40)}
    assert len(looks) == 40
    assert plots.colour_of(-1) == plots.GREY
    assert plots.GREY not in plots.COLOURS


def test_png_round_trip_of_a_thumbnail():
    picture = images.grey(np.linspace(0, 1, 64).reshape(8, 8), (0, 1))
    with Image.open(io.BytesIO(thumbnail(picture, 8))) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_any_number_of_methods_is_compared():
    rng = np.random.default_rng(0)
    names = ["reduced", "exact_12", "exact_14", "exact_16", "exact_18", "mlp"]
    errors = {name: rng.random(20) for name in names}
    figure = plots.crosscheck({name: rng.random(4) for name in names}, errors, rng.random((20, 2)))
    lines = figure.axes[1].lines
    assert [line.get_label() for line in lines] == names
    assert len({line.get_color() for line in lines}) == len(names)
