"""The example's simulation, on a trajectory of a few made-up atoms."""

import struct
from pathlib import Path

import numpy as np
import pytest
import simulate
import torch
import trajectory

from scapedist.files.safe_pickle import load_pickles

RESIDUES = (*range(1, 13), *range(31, 36), *range(118, 126))  # CORE, neither, LID


def write_psf(path: Path) -> None:
    atoms = []
    for residue in RESIDUES:
        for name, mass in (("CA", 12.011), ("HA", 1.008)):
            atoms.append(f"{len(atoms) + 1} 4AKE {residue} ALA {name} 22 0.07 {mass} 0")
    path.write_text("\n".join(["PSF", "", f"{len(atoms)} !NATOM", *atoms]) + "\n")


def write_dcd(path: Path, frames: np.ndarray, order: str = "<", unit_cell: bool = False) -> None:
    def record(content: bytes) -> bytes:
        length = struct.pack(order + "i", len(content))
        return length + content + length

    control = [0] * 20
    control[0], control[10] = len(frames), int(unit_cell)
    content = record(b"CORD" + struct.pack(order + "20i", *control))
    content += record(struct.pack(order + "i", 1) + b"made up".ljust(80))
    content += record(struct.pack(order + "i", frames.shape[1]))
    for frame in frames:
        if unit_cell:
            content += record(np.zeros(6, order + "f8").tobytes())
        for axis in frame.T:
            content += record(axis.astype(order + "f4").tobytes())
    path.write_bytes(content)


@pytest.fixture
def frames() -> np.ndarray:
    """Make 3 frames of 2 atoms a residue; the LID moves, and every frame is turned and shifted."""
    rng = np.random.default_rng(1)
    atoms = 12 * rng.standard_normal((2 * len(RESIDUES), 3))
    in_lid = np.repeat(np.array(RESIDUES) >= 118, 2)
    made = []
    for i, angle in enumerate((0.0, 0.4, 0.8)):
        moved = atoms + np.outer(in_lid, [4.0 * i, 0, 0])
        turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
        made.append(moved @ np.array(turn) + 5 * i)
    return np.stack(made).astype(np.float32)


@pytest.fixture
def inputs(tmp_path, frames) -> tuple[Path, Path]:
    psf, dcd = tmp_path / "made.psf", tmp_path / "made.dcd"
    write_psf(psf)
    write_dcd(dcd, frames)
    return psf, dcd


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("unit_cell", [False, True])
def test_a_dcd_is_read_in_both_byte_orders_with_and_without_unit_cells(
    tmp_path, frames, order, unit_cell
):
    write_dcd(tmp_path / "made.dcd", frames, order, unit_cell)
    np.testing.assert_array_equal(trajectory.read_dcd(tmp_path / "made.dcd"), frames)


def test_a_half_written_dcd_is_refused(inputs):
    _, dcd = inputs
    dcd.write_bytes(dcd.read_bytes()[:-10])
    with pytest.raises(ValueError, match="Take a whole copy"):
        trajectory.read_dcd(dcd)


@pytest.mark.parametrize("content", [b"", b"PSF", struct.pack("<i4si", 4, b"CORD", 4)])
def test_what_is_no_dcd_is_refused(tmp_path, content):
    (tmp_path / "made.dcd").write_bytes(content)
    with pytest.raises(ValueError, match="DCD"):
        trajectory.read_dcd(tmp_path / "made.dcd")


def test_a_psf_without_atoms_is_refused(tmp_path):
    (tmp_path / "made.psf").write_text("PSF\n")
    with pytest.raises(ValueError, match="NATOM"):
        trajectory.read_psf(tmp_path / "made.psf")


def test_the_core_of_every_frame_is_superposed(inputs):
    path = trajectory.load_trajectory(*inputs)
    assert path.frames.shape == (3, len(RESIDUES), 3)  # no hydrogens
    assert path.core_rms_angstroms.max() < 1e-4
    core = ~path.in_lid
    np.testing.assert_allclose(path.frames[2][core], path.frames[0][core], atol=1e-4)
    lid_moved = np.linalg.norm(path.frames[2] - path.frames[0], axis=1)[~core]
    np.testing.assert_allclose(lid_moved, 8, atol=1e-4)


def test_the_path_is_linear_between_frames(inputs):
    path = trajectory.load_trajectory(*inputs)
    first, middle, last = path.frames
    expected = np.stack([first, (first + middle) / 2, middle, last, last])
    np.testing.assert_allclose(path.at(np.array([0, 0.25, 0.5, 1, 2])), expected, atol=1e-12)


def test_superposing_never_mirrors():
    atoms = np.random.default_rng(2).standard_normal((20, 3))
    rotation, _, _ = trajectory.superpose(atoms * [1, 1, -1], atoms)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_truth_has_the_fractions_asked_for():
    t, state = simulate.draw_truth(4000, 0.04, 0.005, np.random.default_rng(3))
    assert np.bincount(state).tolist() == [3820, 160, 20]
    assert t.min() >= 0
    assert t.max() <= 1
    assert t[state == simulate.RARE].max() <= simulate.RARE_T_LIMIT
    assert np.mean((t > 0.3) & (t < 0.7)) == pytest.approx(0.08, abs=0.02)


def test_rotations_are_proper():
    rotations = simulate.draw_rotations(50, np.random.default_rng(4))
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)


def test_a_projection_is_the_sum_of_the_volume_along_z():
    rng = np.random.default_rng(5)
    atoms, weights = rng.uniform(-8, 8, (7, 3)), rng.uniform(1, 8, 7)
    volume = simulate.render_volume(atoms, weights, 24, 2.0, 2.5)
    image = simulate.project(
        torch.tensor(atoms[None], dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
        *(24, 2.0, 2.5),
    )
    np.testing.assert_allclose(volume.sum(0), image[0].numpy(), rtol=1e-3, atol=1e-5)
    assert volume.sum() == pytest.approx(weights.sum(), rel=1e-3)


def test_the_whole_simulation_writes_what_cryodrgn_reads(monkeypatch, inputs, tmp_path):
    psf, dcd = inputs
    size = ["-n", "12", "-D", "16", "--lidless", "0.25", "--rare", "0.1", "--substrate-kda", "0.2"]
    size += ["--substrate-radius", "4", "--threads", str(torch.get_num_threads())]

    def run(out: Path) -> dict[str, bytes]:
        command = ["simulate.py", "--psf", str(psf), "--dcd", str(dcd), "--out", str(out), *size]
        monkeypatch.setattr("sys.argv", command)
        simulate.main()
        names = ["ctf.pkl", "particles.mrcs", "poses.pkl", "truth.npz"]
        return {name: (out / name).read_bytes() for name in names}

    first = run(tmp_path / "first")
    assert run(tmp_path / "second") == first
    (rotations, translations), (ctf,) = (
        load_pickles(tmp_path / "first" / "poses.pkl")[0],
        load_pickles(tmp_path / "first" / "ctf.pkl"),
    )
    assert rotations.shape == (12, 3, 3)
    assert np.abs(translations).max() <= 3 / 16
    assert ctf.shape == (12, 9)
    with np.load(tmp_path / "first" / "truth.npz") as truth:
        assert np.bincount(truth["state"]).tolist() == [8, 3, 1]
    assert len(list((tmp_path / "first" / "truth_volumes").glob("*.mrc"))) == 7


@pytest.mark.parametrize("size", ["15", "0"])
def test_a_box_that_is_odd_or_empty_is_refused(size, capsys):
    required = ["--psf", "p", "--dcd", "d", "--out", "o"]
    with pytest.raises(SystemExit):
        simulate.parse_args([*required, "-D", size])
    assert "even number of pixels" in capsys.readouterr().err
