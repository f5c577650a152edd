"""The conformational path: heavy atoms of a molecular-dynamics trajectory, superposed.

Reads a CHARMM PSF and a CHARMM/NAMD DCD with numpy alone, superposes the frames on the CORE
domain of adenylate kinase and interpolates between them.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CORE_RESIDUES = (*range(1, 30), *range(60, 118), *range(162, 215))
LID_RESIDUES = tuple(range(118, 162))
ATOMIC_NUMBER = {"H": 1, "C": 6, "N": 7, "O": 8, "S": 16}
ELEMENT_OF_MASS = {1: "H", 12: "C", 14: "N", 16: "O", 32: "S"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trajectory:
    """A path of heavy atoms from closed (first frame) to open (last frame).

    Attributes
    ----------
    frames : (n_frames, n_atoms, 3) float64, x, y, z in angstroms
        Superposed on the CORE; the origin is midway between the first and the last centroid.
    weights : (n_atoms,) float64
        Atomic numbers.
    residues : (n_atoms,) int64
        Residue numbers, from 1.
    core_rms_angstroms : (n_frames,) float64
        Distance of each frame's CORE from that of the first frame.
    """

    frames: Floats
    weights: Floats
    residues: NDArray[np.int64]
    core_rms_angstroms: Floats

    @property
    def in_lid(self) -> NDArray[np.bool_]:
        """(n_atoms,) bool, True in the LID domain."""
        return np.isin(self.residues, LID_RESIDUES)

    def at(self, t: float | Floats) -> Floats:
        """Interpolate the coordinates (len(t), n_atoms, 3) at `t`: 0 is closed, 1 is open."""
        position = np.clip(np.atleast_1d(t), 0, 1) * (len(self.frames) - 1)
        left = np.minimum(position.astype(int), len(self.frames) - 2)
        fraction = (position - left)[:, None, None]
        return (1 - fraction) * self.frames[left] + fraction * self.frames[left + 1]


def read_psf(path: Path) -> tuple[NDArray[np.int64], NDArray[np.str_], NDArray[np.str_]]:
    """Residue numbers, atom names and elements (told by their mass), each (n_atoms,).

    Raises
    ------
    ValueError
        When the file has no atom section, or an atom's residue or mass is not one we know.
    """
    lines = path.read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if "!NATOM" in line), None)
    if start is None:
        raise ValueError(f"A PSF file has a line with !NATOM; {path} has none.")
    n_atoms = int(lines[start].split()[0])
    residues, names, elements = [], [], []
    for line in lines[start + 1 : start + 1 + n_atoms]:
        _number, _segment, residue, _residue_name, name, _type, _charge, mass, *_ = line.split()
        residue_number = re.match(r"-?\d+", residue)
        element = ELEMENT_OF_MASS.get(round(float(mass)))
        if residue_number is None or element is None:
            raise ValueError(f"{path}: no H, C, N, O or S atom of a numbered residue: {line!r}")
        residues.append(int(residue_number.group()))
        names.append(name)
        elements.append(element)
    return np.array(residues), np.array(names), np.array(elements)


def fortran_records(path: Path) -> tuple[list[bytes], str]:
    """Fortran records of a DCD file, in order, and the file's byte order ("<" or ">").

    Raises
    ------
    ValueError
        When the file ends within a record or a record's two lengths differ.
    """
    content = path.read_bytes()
    order = "<" if content[:4] == struct.pack("<i", 84) else ">"
    records = []
    position = 0
    while position < len(content):
        head = content[position : position + 4]
        length = struct.unpack(order + "i", head)[0] if len(head) == 4 else 0
        tail = content[position + 4 + length : position + 8 + length]
        if len(head) < 4 or tail != head:
            raise ValueError(
                f"A DCD record has its length before and after it. {path} breaks that at byte "
                f"{position}. Take a whole copy of the file."
            )
        records.append(content[position + 4 : position + 4 + length])
        position += length + 8
    return records, order


def read_dcd(path: Path) -> NDArray[np.float32]:
    """All frames of a CHARMM/NAMD DCD: (n_frames, n_atoms, 3) float32, x, y, z in angstroms.

    Raises
    ------
    ValueError
        When a record is broken, or the file is not a DCD of coordinates without fixed atoms.
    """
    records, order = fortran_records(path)
    if len(records) < 6 or len(records[0]) != 84 or records[0][:4] != b"CORD":
        raise ValueError(f"A DCD of coordinates begins with CORD and has a frame; {path} does not.")
    control = struct.unpack(order + "20i", records[0][4:])
    n_fixed_atoms, has_unit_cell = control[8], bool(control[10])
    if n_fixed_atoms:
        raise ValueError(f"Only a DCD without fixed atoms can be read; {path} has {n_fixed_atoms}.")
    n_atoms = struct.unpack(order + "i", records[2])[0]
    axes = records[3:]
    if has_unit_cell:  # a record before the x, y and z of each frame
        del axes[::4]
    coordinates = [np.frombuffer(record, order + "f4", n_atoms) for record in axes]
    return np.stack(coordinates).reshape(-1, 3, n_atoms).transpose(0, 2, 1).astype(np.float32)


def superpose(mobile: Floats, target: Floats) -> tuple[Floats, Floats, Floats]:
    """Rotation Q and centers with (mobile - center) @ Q.T nearest to target - target's center.

    Kabsch's algorithm (Acta Cryst. A32, 922, 1976), proper rotations only.

    Parameters
    ----------
    mobile, target : (n_atoms, 3) float64

    Returns
    -------
    Q (3, 3), the center of `mobile` (3,) and the center of `target` (3,).
    """
    center, target_center = mobile.mean(0), target.mean(0)
    u, _, vt = np.linalg.svd((mobile - center).T @ (target - target_center))
    handedness = np.sign(np.linalg.det(vt.T @ u.T))
    return vt.T @ np.diag([1.0, 1.0, handedness]) @ u.T, center, target_center


def load_trajectory(psf: Path, dcd: Path) -> Trajectory:
    """Heavy atoms of a trajectory, every frame superposed on the first one's CORE CA atoms."""
    residues, names, elements = read_psf(psf)
    frames = read_dcd(dcd).astype(np.float64)
    core = (names == "CA") & np.isin(residues, CORE_RESIDUES)
    target = frames[0][core]
    rms = []
    for i in range(len(frames)):
        rotation, center, target_center = superpose(frames[i][core], target)
        frames[i] = (frames[i] - center) @ rotation.T + target_center
        rms.append(np.sqrt(((frames[i][core] - target) ** 2).sum(1).mean()))
    heavy = elements != "H"
    frames = frames[:, heavy]
    # One origin for every particle, so that a closed and an open one lie equally far from it.
    frames -= 0.5 * (frames[0].mean(0) + frames[-1].mean(0))
    weights = np.array([ATOMIC_NUMBER[element] for element in elements[heavy]], float)
    return Trajectory(frames, weights, residues[heavy], np.array(rms))
