"""Simulate particle images of adenylate kinase with a known conformation each.

The path is a real molecular-dynamics trajectory: the DIMS (dynamic importance sampling) transition
of E. coli adenylate kinase from closed to open, `adk.psf` and `adk_dims.dcd` of the MDAnalysisTests
package (3,341 atoms, 214 residues, 98 frames). Every particle is a projection of the heavy atoms
themselves; nothing is fitted to an image.

What each particle is (truth.npz)
  state 0  the continuum: t in [0, 1], 45 % near closed, 45 % near open, 10 % in between
  state 1  without the LID domain (residues 118 to 161), 4 % of the particles, t as above
  state 2  rare, 0.5 %: closed-like (t near 0.1) with a bound `substrate`, a ball of pseudo-atoms
           of 12 A and 10 kDa that touches LID and CORE and overlaps nothing
  t = frame / (n_frames - 1), the frames superposed on the CORE; linear between frames.

How an image is made (cryoDRGN's conventions)
  * A particle of rotation R shows its atoms at R r, projected along z. Arrays are image[y, x] and
    volume[z, y, x]; the origin is the voxel D / 2.
  * An atom is a Gaussian weighted with its atomic number, so that a projection is one small
    matrix product: Gy^T diag(weights) Gx.
  * A particle lies `shift` pixels off the center. cryoDRGN adds `trans` to an image to center it,
    so poses.pkl holds trans = -shift / D, a fraction of the box.
  * cryoDRGN's own CTF, in a box that is padded and cropped afterwards: delocalised signal leaves
    the box, as in an experiment, and does not wrap around.
  * That CTF is negative at low resolution and cryoDRGN inverts images by default, so the stored
    image is -CTF * projection: with its defaults the reconstructed density is positive.
  * White Gaussian noise of one sigma: SNR = mean variance of the signal in an image / sigma^2.

Writes particles.mrcs, poses.pkl, ctf.pkl, truth.npz and truth_volumes/*.mrc. The output depends on
the arguments alone (one seeded generator), to the last bits of the linear algebra library.

Example
  python simulate.py --psf adk.psf --dcd adk_dims.dcd --out adk -n 20000 --seed 2026
"""

import argparse
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryodrgn import mrcfile
from cryodrgn.ctf import compute_ctf
from numpy.typing import ArrayLike, NDArray
from trajectory import CORE_RESIDUES, Floats, Trajectory, load_trajectory

CONTINUUM, LIDLESS, RARE = 0, 1, 2

# The density of t: (weight, mean, standard deviation) of two wells, and the interval of the
# uniform bridge that takes the remaining weight.
WELLS = ((0.45, 0.12, 0.05), (0.45, 0.88, 0.05))
BRIDGE = (0.25, 0.75)
RARE_T, RARE_T_SPREAD, RARE_T_LIMIT = 0.1, 0.03, 0.2

SUBSTRATE_GAP_ANGSTROMS = 3.0
SUBSTRATE_SPACING_ANGSTROMS = 1.4
DALTONS_PER_HEAVY_ATOM = 14.25  # as in adenylate kinase

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Substrate:
    """A ball of pseudo-atoms, (n, 3) float64 in angstroms, and where its center lies."""

    atoms: Floats
    center: Floats
    to_lid_angstroms: float
    to_core_angstroms: float


@dataclass(frozen=True)
class Particles:
    """What each of n particles shows and how it was imaged.

    Attributes
    ----------
    t : (n,) float64
        Place on the path.
    state : (n,) int8
        CONTINUUM, LIDLESS or RARE.
    rotations : (n, 3, 3) float64
    shifts : (n, 2) float64, x, y in pixels
    ctf : (n, 9) float32
        D, A/pixel, defocus U and V (A), angle (degrees), kV, Cs (mm), amplitude contrast, phase.
    """

    t: Floats
    state: NDArray[np.int8]
    rotations: Floats
    shifts: Floats
    ctf: NDArray[np.float32]


# ---------------------------------------------------------------- the substrate


def substrate_center(trajectory: Trajectory, radius: float) -> tuple[Floats, float, float]:
    """Find the groove between LID and CORE: a point (3,) and its distance to each, in angstroms.

    Of the points of a 2 A grid that keep `radius` and a gap from every heavy atom, for every t that
    the rare state can take, it is the one with the least sum of distances to the LID and the CORE.
    """
    shapes = trajectory.at(np.linspace(max(RARE_T - 0.1, 0), RARE_T + 0.1, 5))
    axis = np.arange(-46, 46.1, 2.0)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.linalg.norm(grid, axis=1) < 40]

    def distance_to(atoms: NDArray[np.bool_]) -> Floats:
        points = shapes[:, atoms].reshape(-1, 3)
        return torch.cdist(torch.tensor(grid), torch.tensor(points)).min(1).values.numpy()

    in_lid, in_core = trajectory.in_lid, np.isin(trajectory.residues, CORE_RESIDUES)
    to_lid, to_core = distance_to(in_lid), distance_to(in_core)
    to_any = np.minimum(np.minimum(to_lid, to_core), distance_to(~in_lid & ~in_core))
    free = to_any >= radius + SUBSTRATE_GAP_ANGSTROMS
    best = np.argmin(np.where(free, to_lid + to_core, np.inf))
    return grid[best], float(to_lid[best]), float(to_core[best])


def ball_of_atoms(n: int, radius: float, rng: np.random.Generator) -> Floats:
    """(n, 3) points, uniform in a ball of `radius`, no two closer than 1.4 A."""
    points: list[Floats] = []
    while len(points) < n:
        point = rng.uniform(-radius, radius, 3)
        if point @ point > radius**2:
            continue
        if points:
            nearest = np.min(((np.array(points) - point) ** 2).sum(1))
            if nearest < SUBSTRATE_SPACING_ANGSTROMS**2:
                continue
        points.append(point)
    return np.array(points)


def make_substrate(
    trajectory: Trajectory, radius: float, mass_kda: float, rng: np.random.Generator
) -> Substrate:
    """Place a ball of pseudo-atoms of `mass_kda` where it touches both LID and CORE."""
    center, to_lid, to_core = substrate_center(trajectory, radius)
    n = round(mass_kda * 1000 / DALTONS_PER_HEAVY_ATOM)
    return Substrate(ball_of_atoms(n, radius, rng) + center, center, to_lid, to_core)


# ---------------------------------------------------------------- drawing particles


def draw_t(n: int, rng: np.random.Generator) -> Floats:
    """(n,) places on the path, from the two wells and the bridge between them."""
    choice = rng.random(n)
    t = rng.uniform(*BRIDGE, n)
    low = 0.0
    for weight, mean, spread in WELLS:
        in_well = (choice >= low) & (choice < low + weight)
        t[in_well] = mean + spread * rng.standard_normal(in_well.sum())
        low += weight
    return np.clip(t, 0, 1)


def draw_rotations(n: int, rng: np.random.Generator) -> Floats:
    """(n, 3, 3) rotations, uniform on SO(3), from unit quaternions."""
    quaternions = rng.standard_normal((n, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([entry for row in rows for entry in row], 1).reshape(n, 3, 3)


def draw_truth(
    n: int, lidless: float, rare: float, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int8]]:
    """Each particle's t (n,) float64 and state (n,) int8, for fractions `lidless` and `rare`."""
    n_lidless, n_rare = round(lidless * n), round(rare * n)
    order = rng.permutation(n)
    state = np.full(n, CONTINUUM, np.int8)
    state[order[:n_lidless]] = LIDLESS
    state[order[n_lidless : n_lidless + n_rare]] = RARE
    t = draw_t(n, rng)
    rare_t = RARE_T + RARE_T_SPREAD * rng.standard_normal(n_rare)
    t[state == RARE] = np.clip(rare_t, 0, RARE_T_LIMIT)
    return t, state


def draw_particles(args: argparse.Namespace, rng: np.random.Generator) -> Particles:
    """Draw truth, pose and CTF of every particle, in this order (it fixes the random numbers)."""
    n = args.n
    t, state = draw_truth(n, args.lidless, args.rare, rng)
    rotations = draw_rotations(n, rng)
    shifts = rng.uniform(-args.shift, args.shift, (n, 2))
    defocus_u = rng.uniform(args.defocus[0], args.defocus[1], n)
    defocus_v = defocus_u - rng.uniform(0, args.astigmatism, n)
    ctf = np.empty((n, 9), np.float32)
    ctf[:, 0], ctf[:, 1] = args.D, args.apix
    ctf[:, 2], ctf[:, 3], ctf[:, 4] = defocus_u, defocus_v, rng.uniform(0, 180, n)
    ctf[:, 5], ctf[:, 6], ctf[:, 7], ctf[:, 8] = args.kv, args.cs, args.amp_contrast, 0
    return Particles(t, state, rotations, shifts, ctf)


# ---------------------------------------------------------------- rendering


def gaussians(x: torch.Tensor, size: int, apix: float, sigma: float) -> torch.Tensor:
    """Gaussians of unit area on a line of pixels: (..., n) angstroms -> (..., n, size)."""
    pixels = (torch.arange(size, dtype=x.dtype) - size // 2) * apix
    values = (pixels - x[..., None]).div_(sigma).square_().mul_(-0.5).exp_()
    return values.mul_(apix / (sigma * (2 * np.pi) ** 0.5))


def render_volume(
    atoms: ArrayLike, weights: ArrayLike, size: int, apix: float, sigma: float
) -> Images:
    """Density (size, size, size) float32, axes z, y, x, of atoms (n, 3) with weights (n,)."""
    xyz = torch.as_tensor(np.asarray(atoms), dtype=torch.float32)
    w = torch.as_tensor(np.asarray(weights), dtype=torch.float32)
    gx, gy, gz = (gaussians(xyz[:, i], size, apix, sigma) for i in range(3))
    zy = (gz * w[:, None])[:, :, None] * gy[:, None, :]
    return (zy.reshape(len(w), -1).T @ gx).reshape(size, size, size).numpy()


def project(
    atoms: torch.Tensor, weights: torch.Tensor, size: int, apix: float, sigma: float
) -> torch.Tensor:
    """Project along z: atoms (b, n, 3) with weights (n,) -> images (b, size, size), axes y, x."""
    gx = gaussians(atoms[..., 0], size, apix, sigma)
    gy = gaussians(atoms[..., 1], size, apix, sigma) * weights[:, None]
    return torch.bmm(gy.transpose(1, 2), gx)


def apply_ctf(images: torch.Tensor, ctf: torch.Tensor, apix: float) -> torch.Tensor:
    """Multiply images (b, p, p) by cryoDRGN's CTF of their parameters (b, 9), in Fourier space."""
    size = images.shape[-1]
    f = torch.fft.fftfreq(size, d=apix)
    fy, fx = torch.meshgrid(f, f, indexing="ij")
    frequencies = torch.stack([fx, fy], -1).reshape(1, -1, 2).expand(len(images), -1, -1)
    factor = compute_ctf(frequencies, *torch.split(ctf[:, 2:], 1, 1))
    return torch.fft.ifft2(torch.fft.fft2(images) * factor.reshape(len(images), size, size)).real


def composition(
    state: int, trajectory: Trajectory, substrate: Substrate
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Which heavy atoms a state has (n_atoms,), which atoms it adds (m, 3), and all their weights.

    A pseudo-atom of the substrate weighs what a heavy atom of the protein weighs on average.
    """
    no_atoms = np.empty((0, 3))
    if state == LIDLESS:
        return ~trajectory.in_lid, no_atoms, trajectory.weights[~trajectory.in_lid]
    everything = np.ones(len(trajectory.weights), bool)
    if state == RARE:
        added = np.full(len(substrate.atoms), trajectory.weights.mean())
        return everything, substrate.atoms, np.concatenate([trajectory.weights, added])
    return everything, no_atoms, trajectory.weights


def batches(members: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Consecutive slices of at most `size` of `members`."""
    for start in range(0, len(members), size):
        yield members[start : start + size]


def signal_images(
    particles: Particles, trajectory: Trajectory, substrate: Substrate, args: argparse.Namespace
) -> Images:
    """Noiseless images (n, D, D) float32, light on dark."""
    images = np.empty((args.n, args.D, args.D), np.float32)
    padded = args.D * args.ctf_pad
    crop = slice((padded - args.D) // 2, (padded - args.D) // 2 + args.D)
    ctf = torch.tensor(particles.ctf)
    for state in (CONTINUUM, LIDLESS, RARE):
        kept, added, weights = composition(state, trajectory, substrate)
        weights_f4 = torch.tensor(weights, dtype=torch.float32)
        for rows in batches(np.flatnonzero(particles.state == state), args.batch):
            atoms = trajectory.at(particles.t[rows])[:, kept]
            atoms = np.concatenate([atoms, np.broadcast_to(added, (len(rows), *added.shape))], 1)
            atoms = np.einsum("bij,baj->bai", particles.rotations[rows], atoms)
            atoms[:, :, :2] += particles.shifts[rows][:, None, :] * args.apix
            atoms_f4 = torch.tensor(atoms, dtype=torch.float32)
            projections = project(atoms_f4, weights_f4, padded, args.apix, args.sigma)
            seen = -apply_ctf(projections, ctf[rows], args.apix)
            images[rows] = seen[:, crop, crop].numpy()
    return images


def add_noise(images: Images, snr: float, rng: np.random.Generator) -> tuple[float, float]:
    """Add white noise, then scale it to a variance of 1, in place; return signal and noise sigma.

    Normalised particles have unit noise variance too.
    """
    variance = float(np.mean([image.var() for image in images]))
    noise = (variance / snr) ** 0.5
    for start in range(0, len(images), 1000):
        block = images[start : start + 1000]
        block += noise * rng.standard_normal(block.shape, dtype=np.float32)
    images /= noise
    return variance**0.5, noise


# ---------------------------------------------------------------- writing


def write_particles(out: Path, images: Images, particles: Particles, apix: float) -> None:
    """Write the stack, cryoDRGN's poses and CTF pickles, and the truth."""
    box_size = images.shape[-1]
    mrcfile.write_mrc(str(out / "particles.mrcs"), images, is_vol=False, Apix=apix)
    rotations = particles.rotations.astype(np.float32)
    translations = (-particles.shifts / box_size).astype(np.float32)
    with open(out / "poses.pkl", "wb") as file:
        pickle.dump((rotations, translations), file)
    with open(out / "ctf.pkl", "wb") as file:
        pickle.dump(particles.ctf, file)
    np.savez_compressed(out / "truth.npz", t=particles.t.astype(np.float32), state=particles.state)


def write_truth_volumes(
    out: Path, trajectory: Trajectory, substrate: Substrate, args: argparse.Namespace
) -> None:
    """Write the true density of the continuum and the LID-less state at three t, and the rare's."""
    out.mkdir(exist_ok=True)
    densities = [
        (f"{prefix}{name}", state, t)
        for name, t in (("closed", 0.12), ("open", 0.88), ("mid", 0.5))
        for prefix, state in (("", CONTINUUM), ("lidless_", LIDLESS))
    ]
    for name, state, t in [*densities, ("rare", RARE, RARE_T)]:
        kept, added, weights = composition(state, trajectory, substrate)
        atoms = np.concatenate([trajectory.at(t)[0][kept], added])
        volume = render_volume(atoms, weights, args.D, args.apix, args.sigma)
        mrcfile.write_mrc(str(out / f"{name}.mrc"), volume, Apix=args.apix)


def even(text: str) -> int:
    """Read an even whole number above zero, for argparse."""
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"a box has an even number of pixels, not {number}")
    return number


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--psf", type=Path, required=True, help="adk.psf of MDAnalysisTests")
    add("--dcd", type=Path, required=True, help="adk_dims.dcd of MDAnalysisTests")
    add("--out", type=Path, required=True, help="output folder")
    add("-n", type=int, default=20000, help="particles")
    add("-D", type=even, default=48, help="box (pixels, even)")
    add("--apix", type=float, default=2.5, help="A/pixel")
    add("--sigma", type=float, default=2.0, help="standard deviation of an atom's Gaussian (A)")
    add("--snr", type=float, default=0.2, help="variance of the signal / variance of the noise")
    add("--shift", type=float, default=3.0, help="largest shift along x and y (pixels)")
    add("--lidless", type=float, default=0.04, help="fraction of particles in state 1")
    add("--rare", type=float, default=0.005, help="fraction of particles in state 2")
    add("--substrate-kda", type=float, default=10.0, help="mass of the substrate (kDa)")
    add("--substrate-radius", type=float, default=12.0, help="radius of the substrate (A)")
    add("--defocus", type=float, nargs=2, default=(8000, 20000), help="least and most (A)")
    add("--astigmatism", type=float, default=300.0, help="largest defocus U - V (A)")
    add("--kv", type=float, default=300.0, help="acceleration voltage (kV)")
    add("--cs", type=float, default=2.7, help="spherical aberration (mm)")
    add("--amp-contrast", type=float, default=0.1, help="amplitude contrast")
    add("--ctf-pad", type=int, default=2, help="padding of the box for the CTF (times)")
    add("--seed", type=int, default=2026)
    add("--batch", type=int, default=128, help="images rendered at once")
    add("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main() -> None:
    """Simulate, write, and say what was made."""
    args = parse_args()
    started = time.time()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    trajectory = load_trajectory(args.psf, args.dcd)
    print(
        f"{len(trajectory.frames)} frames, {len(trajectory.weights)} heavy atoms, CORE rms to "
        f"frame 0 <= {trajectory.core_rms_angstroms.max():.2f} A, LID {trajectory.in_lid.sum()} "
        f"heavy atoms"
    )
    substrate = make_substrate(trajectory, args.substrate_radius, args.substrate_kda, rng)
    print(
        f"substrate: {len(substrate.atoms)} pseudo-atoms, center {np.round(substrate.center, 1)} A,"
        f" to LID {substrate.to_lid_angstroms:.1f} A, to CORE {substrate.to_core_angstroms:.1f} A"
    )
    particles = draw_particles(args, rng)
    images = signal_images(particles, trajectory, substrate, args)
    signal, noise = add_noise(images, args.snr, rng)
    print(f"signal sigma {signal:.4g}, noise sigma {noise:.4g}, images in units of the latter")

    write_particles(args.out, images, particles, args.apix)
    write_truth_volumes(args.out / "truth_volumes", trajectory, substrate, args)
    counts = np.bincount(particles.state, minlength=3).tolist()
    print(
        f"wrote {args.n} particles (states {counts}; t < 0.25: {np.mean(particles.t < 0.25):.3f}, "
        f"t > 0.75: {np.mean(particles.t > 0.75):.3f}) to {args.out} "
        f"in {time.time() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
