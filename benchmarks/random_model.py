"""Writes work directories of cryoDRGN with random weights, of any architecture and size.

The modules, configurations and pickles are cryoDRGN's own, as its training commands write them;
only the training is missing. Tests and benchmarks decode from these, or from a trained model with
some of its particles alone.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import cryodrgn.config
import numpy as np
import torch
from cryodrgn.lattice import Lattice
from cryodrgn.models import HetOnlyVAE, get_decoder
from cryodrgn.models_ai import HyperVolume

EPOCH = 19
COMMANDS = ("train_vae", "train_dec", "abinit")
ENCODINGS = ("gaussian", "linear_lowf", "geom_ft", "geom_full", "geom_lowf", "geom_nohighf", "none")
DOMAINS = ("fourier", "hartley")
ACTIVATIONS = {"relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU}
TINY_ENCODER = {
    "qlayers": 1,
    "qdim": 2,
    "encode_mode": "resid",
    "enc_mask": -1,
    "tilt_params": {"tdim": 1024, "tlayers": 3, "t_emb_dim": 64, "ntilts": 10},
}
"""Settings of an encoder that takes next to no room: nothing here encodes images."""


def write_random_model(
    workdir: str | Path,
    command: str = "train_vae",
    *,
    box_size: int = 32,
    layers: int = 3,
    width: int = 64,
    zdim: int = 8,
    encoding: str = "gaussian",
    pe_dim: int | None = None,
    domain: str = "fourier",
    activation: str = "relu",
    latent_encoding: str | None = None,
    extent: float = 0.5,
    norm: tuple[float, float] = (0.0, 10.0),
    mask_radius: int | None = None,
    n_particles: int = 100,
    with_indices: bool = False,
) -> Path:
    """Write a work directory of epoch 19, always the same, and return its path.

    The decoder is as the training commands name its settings; ``abinit`` has gaussian, hartley and
    relu, and ``latent_encoding`` (its ``pe_type_conf``) and ``mask_radius`` (of the output mask,
    in lattice points; default: half the box) are its alone. ``extent`` is the frequency of the
    lattice's last point, ``norm`` the mean and deviation of the data's coefficients. With indices
    (``--ind``) particles are every other of a larger stack.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    stack_size = 2 * n_particles if with_indices else n_particles
    # D, A/px, dfU, dfV, angle, kV, Cs, w, phase
    optics = np.array([box_size, 1.5, 15000, 14800, 30, 300, 2.7, 0.1, 0], np.float32)
    _dump(workdir / "ctf.pkl", np.tile(optics, (stack_size, 1)))
    dataset: dict[str, Any] = {"particles": "particles.mrcs", "invert_data": True, "ind": None}
    dataset |= {"datadir": None, "ctf": str(workdir / "ctf.pkl")}
    if with_indices:
        dataset["ind"] = str(workdir / "ind.pkl")
        _dump(workdir / "ind.pkl", np.arange(1, stack_size, 2))
    lattice = {"D": box_size + 1, "extent": extent, "ignore_DC": True}
    config: dict[str, Any] = {"dataset_args": dataset, "lattice_args": lattice, "seed": 0}
    config["cmd"] = ["cryodrgn", command]
    checkpoint: dict[str, Any] = {"epoch": EPOCH}
    half = box_size // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if command == "abinit":
            frequencies = half if pe_dim is None else pe_dim
            shape = (box_size + 1, zdim, layers, width, encoding, frequencies)
            made = HyperVolume(*shape, 0.5, "hartley", pe_type_conf=latent_encoding)
            _spread(made.mlp.main)
            config |= _abinit_settings(made, norm)
            checkpoint |= _abinit_checkpoint(made, mask_radius or half)
        else:
            dataset |= {"norm": list(norm), "window": True, "window_r": 0.85}
            dataset |= {"poses": "poses.pkl", "do_pose_sgd": False}
            settings: dict[str, Any] = {"zdim": zdim, "pe_type": encoding, "pe_dim": pe_dim}
            settings |= {"feat_sigma": 0.5, "domain": domain, "activation": activation}
            if command == "train_vae":
                dataset["keepreal"] = False
                settings |= {"players": layers, "pdim": width, **TINY_ENCODER}
            else:
                settings |= {"layers": layers, "dim": width}
                checkpoint["norm"] = list(norm)
            config["model_args"] = settings
            module = _make_module(config)
            _spread(_decoder_layers(module))
            optimizer = torch.optim.Adam(module.parameters()).state_dict()
            checkpoint["model_state_dict"] = module.state_dict()
            checkpoint["optimizer_state_dict"] = optimizer
    cryodrgn.config.save(config, "config.yaml", str(workdir))
    torch.save(checkpoint, workdir / f"weights.{EPOCH}.pkl")
    # train_vae writes two float32 arrays, means and log variances, abinit one of float64
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(n_particles, zdim))
    arrays = [latents if command == "abinit" else latents.astype(np.float32)]
    if command == "train_vae":
        arrays.append(rng.normal(-2, 0.3, (n_particles, zdim)).astype(np.float32))
    _dump(workdir / f"z.{EPOCH}.pkl", *arrays)
    return workdir


def copy_with_particles(workdir: Path, epoch: int, rows: np.ndarray | slice, place: Path) -> Path:
    """Copy a work directory of latent means and log variances with some of its rows alone."""
    shutil.copytree(workdir, place)
    latents = place / f"z.{epoch}.pkl"
    write_latents(latents, *(array[rows] for array in read_latents(latents)))
    return place


def read_latents(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Means and log variances of a file of latents."""
    with path.open("rb") as stream:
        return pickle.load(stream), pickle.load(stream)


def write_latents(path: Path, means: np.ndarray, log_variances: np.ndarray) -> None:
    """Write means and log variances as train_vae does."""
    _dump(path, means, log_variances)


def _make_module(config: dict[str, Any]) -> torch.nn.Module:
    """The module that cryoDRGN makes of a configuration, with its own random weights."""
    settings, lattice = config["model_args"], config["lattice_args"]
    if "players" in settings:
        return HetOnlyVAE.load(config)[0]
    return get_decoder(
        3 + settings["zdim"],
        lattice["D"],
        settings["layers"],
        settings["dim"],
        settings["domain"],
        settings["pe_type"],
        settings["pe_dim"],
        ACTIVATIONS[settings["activation"]],
        settings["feat_sigma"],
    )


def _decoder_layers(module: torch.nn.Module) -> torch.nn.Sequential:
    """The linear layers and activations of a train_vae or train_dec module's decoder."""
    decoder: Any = module.decoder if isinstance(module, HetOnlyVAE) else module
    return decoder.main if hasattr(decoder, "main") else decoder.decoder.main


def _spread(layers: torch.nn.Sequential) -> None:
    """Scale weights so that values vary from point to point and from latent to latent.

    As torch initialises them, values are nearly constant: volumes would be a peak at the origin,
    beside which no error is seen.
    """
    ends: list[Any] = [getattr(layers[i], "linear", layers[i]) for i in (0, -1)]
    first, last = ends
    with torch.no_grad():
        first.weight.mul_(4)
        last.weight.mul_(10).sub_(last.weight.mean(dim=1, keepdim=True))
        last.bias.zero_()


def _abinit_settings(hypervolume: HyperVolume, norm: tuple[float, float]) -> dict[str, Any]:
    names = ("pe_type", "pe_dim", "feat_sigma", "domain")
    settings = {"zdim": hypervolume.z_dim, "use_conf_encoder": False}
    return {
        "model_args": settings | {name: getattr(hypervolume, name) for name in names},
        "training": {"zdim": hypervolume.z_dim, "pe_type_conf": hypervolume.pe_type_conf},
        "data_norm_mean": float(norm[0]),
        "data_norm_std": float(norm[1]),
    }


def _abinit_checkpoint(hypervolume: HyperVolume, mask_radius: int) -> dict[str, Any]:
    state, lattice = hypervolume.state_dict(), Lattice(hypervolume.D)
    optimizer = torch.optim.Adam(hypervolume.parameters())
    named = {f"hypervolume.{name}": value for name, value in state.items()}
    return {
        "model_state_dict": {"coords": lattice.coords, "freqs2d": lattice.freqs2d} | named,
        "hypervolume_state_dict": state,
        "hypervolume_params": hypervolume.get_building_params(),
        "optimizers_state_dict": {"hypervolume": optimizer.state_dict()},
        "output_mask_radius": mask_radius,
    }


def _dump(path: Path, *arrays: np.ndarray) -> None:
    path.write_bytes(b"".join(pickle.dumps(array) for array in arrays))
