"""Opening the model of a cryoDRGN work directory: configuration, latents, pixel size, files."""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from scapedist.errors import InputError
from scapedist.files.safe_pickle import load_pickle, load_pickles
from scapedist.model.checkpoint import read_decoder
from scapedist.model.decoder import Decoder, check_latents

if TYPE_CHECKING:  # what decodes nothing starts without torch
    from scapedist.model.field import Field


@dataclass
class Model:
    """A trained model and the particles it was trained on.

    Attributes
    ----------
    config
        The training's configuration.
    latents : (n_particles, zdim) float32
        Latent means.
    latent_variance : (n_particles, zdim) float32 or None
        Posterior variances, where the work directory has them.
    box_size
        Voxels along an edge.
    pixel_size_angstroms
        Pixel size in Å of the full box, from the CTF file; None where it is unknown.
    stack_indices : (n_particles,) int64 or None
        Row in the original stack of each particle, where the training used ``--ind`` and the
        file is found; without ``--ind`` the rows themselves.
    files
        Paths of the files that the model was read from, by name.
    architecture
        Command that trained the model, encoding, domain, sizes (of the layers, once they are read).
    notes
        Remarks on the loading for the user (a file not found, a size not known).
    """

    config: dict[str, Any]
    latents: np.ndarray
    latent_variance: np.ndarray | None
    box_size: int
    pixel_size_angstroms: float | None
    stack_indices: np.ndarray | None
    files: dict[str, Path]
    architecture: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    _decoder: Decoder | None = field(default=None, repr=False)
    _fields: dict[str, Field] = field(default_factory=dict, repr=False)

    @property
    def decoder(self) -> Decoder:
        """The decoder's weights and rules, read when they are first asked for."""
        if self._decoder is None:
            self.decoder = read_decoder(self.config, self.files["weights"])
        assert self._decoder is not None
        return self._decoder

    @decoder.setter
    def decoder(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.architecture["hidden_layers"] = len(decoder.weights) - 2
        self.architecture["hidden_size"] = decoder.hidden_size

    def decode(
        self, latents: np.ndarray, box_size: int | None = None, dtype: str = "float32"
    ) -> np.ndarray:
        """Density maps of latents.

        Parameters
        ----------
        latents : (n, zdim) float
        box_size
            Voxels along an edge, even, at most the model's (default). Smaller boxes are Fourier
            crops: the same extent in Å, larger pixels.
        dtype
            Precision of the evaluation: ``float32``, ``float64``, ``bfloat16``, ``float16``.

        Returns
        -------
        (n, d, d, d) float32 array, axes z, y, x.
        """
        from scapedist.model.field import Field

        if dtype not in self._fields:
            self._fields[dtype] = Field(self.decoder, dtype=dtype)
        volumes = self._fields[dtype].decode(np.atleast_2d(latents), box_size)
        return volumes.float().numpy()

    def posterior_variance(self) -> np.ndarray:
        """The latents' posterior variances; an InputError where the model has none."""
        if self.latent_variance is None:
            raise InputError(
                "Error bars come from the latents' posterior variance. This model has none (its z "
                "file holds means alone). Leave out --error-bars."
            )
        return self.latent_variance

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of each file the model was read from."""
        return {name: sha256_of(path) for name, path in self.files.items()}


def open_model(workdir: str | Path, epoch: int, check_weights: bool = True) -> Model:
    """Load a trained model.

    Parameters
    ----------
    workdir
        Directory with ``config.yaml`` (or an old ``config.pkl``), ``weights.N.pkl``, ``z.N.pkl``
        of cryoDRGN's ``train_vae``, ``train_dec`` or ``abinit``.
    epoch
        Epoch N; -1 for ``weights.pkl`` and ``z.pkl``.
    check_weights
        Whether to read the weights now (default), or when the decoder is first asked for.

    Raises
    ------
    InputError
        Where a file is missing, half-written, not what it should be, or does not fit the others.
    """
    workdir = Path(workdir)
    files = _find_files(workdir, epoch)
    config = read_config(files["config"])
    architecture = _describe(config, files["config"])
    box_size, zdim = architecture["box_size"], architecture["zdim"]
    latents, variance = _read_latents(files["latents"], zdim, architecture["command"])
    notes: list[str] = []
    dataset = config.get("dataset_args") or {}
    pixel_size = _read_pixel_size(dataset.get("ctf"), workdir, box_size, files, notes)
    stack_indices = _read_stack_indices(dataset.get("ind"), workdir, len(latents), files, notes)
    model = Model(
        config=config,
        latents=latents,
        latent_variance=variance,
        box_size=box_size,
        pixel_size_angstroms=pixel_size,
        stack_indices=stack_indices,
        files=files,
        architecture=architecture,
        notes=notes,
    )
    if check_weights:
        _ = model.decoder
    elif not zipfile.is_zipfile(files["weights"]):  # a zip's directory is at its end
        raise InputError(
            f"{files['weights']} is not a checkpoint of torch, or is cut short. "
            "Give the file as cryoDRGN wrote it."
        )
    return model


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _find_files(workdir: Path, epoch: int) -> dict[str, Path]:
    if not workdir.is_dir():
        raise InputError(f"{workdir} is not a directory. Give the output directory of a training.")
    configs = [workdir / name for name in ("config.yaml", "config.pkl")]
    config = next((path for path in configs if path.is_file()), None)
    epochs = sorted(
        int(match[1])
        for path in workdir.glob("weights.*.pkl")
        if (match := re.fullmatch(r"weights\.(\d+)\.pkl", path.name))
    )
    if config is None:
        raise InputError(
            f"{workdir} is no cryoDRGN work directory: it has neither config.yaml nor config.pkl. "
            "Give the output directory of train_vae, train_dec or abinit."
        )
    suffix = "" if epoch == -1 else f".{epoch}"
    files = {
        "config": config,
        "weights": workdir / f"weights{suffix}.pkl",
        "latents": workdir / f"z{suffix}.pkl",
    }
    for name, path in files.items():
        if not path.is_file():
            if name == "latents":
                hint = "Copy it too; where the training was homogeneous, there is no landscape."
            elif epochs:
                hint = f"There are weights of the epochs {', '.join(map(str, epochs))}."
            else:
                hint = "There are weights of no epoch."
            raise InputError(f"{path} does not exist. {hint}")
    return files


class _ConfigLoader(yaml.SafeLoader):
    """Loader of plain YAML that reads Python tuples, which older configurations have, as lists."""


def _read_tuple(loader: _ConfigLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


_ConfigLoader.add_constructor("tag:yaml.org,2002:python/tuple", _read_tuple)


def read_config(path: Path) -> dict[str, Any]:
    """A training's configuration, from ``config.yaml`` or an old ``config.pkl``."""
    if path.suffix == ".pkl":
        # what cryoDRGN adds to these (activation, feat_sigma) is not needed or has a default here
        config = load_pickle(path)
    else:
        try:
            config = yaml.load(path.read_text(), _ConfigLoader)  # noqa: S506 (a safe loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path} is not YAML that holds plain values ({reason}). "
                "Give the file as cryoDRGN wrote it."
            ) from None
    needed = ("lattice_args", "model_args")
    if not isinstance(config, dict) or not all(isinstance(config.get(k), dict) for k in needed):
        raise InputError(
            f"{path} is not a configuration of a heterogeneous training: it lacks "
            "lattice_args or model_args, or is cut short. Give the file as cryoDRGN wrote it."
        )
    return config


def _describe(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Command that trained a model, its encoding, domain and sizes, from its configuration."""
    arguments = config["model_args"]
    if "data_norm_mean" in config:
        command = "abinit"
    else:
        command = "train_vae" if "players" in arguments else "train_dec"
    try:
        zdim, points_across = int(arguments["zdim"] or 0), int(config["lattice_args"]["D"])
        encoding, domain = arguments["pe_type"], arguments["domain"]
    except KeyError as error:
        raise InputError(
            f"A configuration says how the model is built, but in {path} {error} is missing. "
            "Give both as one training wrote them."
        ) from None
    if zdim == 0:
        raise InputError(
            f"{path} is of a homogeneous reconstruction: it has no latents to analyse."
        )
    return {
        "command": command,
        "encoding": encoding,
        "domain": domain,
        "activation": arguments.get("activation", "relu"),
        "zdim": zdim,
        "box_size": points_across - 1,
    }


def _read_latents(path: Path, zdim: int, command: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Latent means and variances, both (n_particles, zdim) float32."""
    objects = load_pickles(path)
    for item in objects:
        if not isinstance(item, np.ndarray) or item.dtype.kind != "f":
            raise InputError(
                f"{path} should hold arrays of latents. It holds a {type(item).__name__}. "
                "Give the file as cryoDRGN wrote it."
            )
    if command == "train_vae" and len(objects) < 2:
        raise InputError(
            f"{path} should hold two arrays, the latents' means and log-variances, as train_vae "
            "writes it. It holds one: it is cut short. Copy it again."
        )
    try:
        latents = check_latents(objects[0].astype(np.float32), zdim)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    variance = None
    if len(objects) > 1:
        if objects[1].shape != latents.shape or not np.isfinite(objects[1]).all():
            raise InputError(
                f"{path} should hold means and log-variances of one shape, finite numbers. The "
                f"shapes are {latents.shape} and {objects[1].shape}; {np.isnan(objects[1]).sum()} "
                "log-variances are not a number. Give the file as cryoDRGN wrote it."
            )
        variance = np.exp(objects[1].astype(np.float32))
    return latents, variance


def _locate(name: object, workdir: Path) -> Path | None:
    """Path of a file that the configuration names: where it was, or beside the configuration."""
    if not isinstance(name, str):
        return None
    candidates = (Path(name), workdir / name, workdir.parent / name, workdir / Path(name).name)
    return next((path for path in candidates if path.is_file()), None)


def _read_pixel_size(
    name: object, workdir: Path, box_size: int, files: dict[str, Path], notes: list[str]
) -> float | None:
    """Å per voxel of the full box, from the CTF file's first two columns (D, Å per pixel)."""
    path = _locate(name, workdir)
    if path is None:
        reason = "the training had no CTF file" if name is None else f"{name} is not found"
        notes.append(f"Pixel size unknown: {reason}. Give it with --pixel-size.")
        return None
    table = load_pickle(path)
    if not isinstance(table, np.ndarray) or table.shape[1:] != (9,) or table.dtype.kind != "f":
        raise InputError(
            f"{path} should hold a CTF table of nine columns. It does not. Give the file that the "
            "training used, or move it away and give --pixel-size."
        )
    files["ctf"] = path
    sizes = np.unique(table[:, :2], axis=0)
    if len(sizes) != 1 or not (sizes > 0).all():
        notes.append(f"Pixel size unknown: {path} has no single one. Give it with --pixel-size.")
        return None
    return round(float(sizes[0, 1]) * float(sizes[0, 0]) / box_size, 6)


def _read_stack_indices(
    name: object, workdir: Path, n_particles: int, files: dict[str, Path], notes: list[str]
) -> np.ndarray | None:
    """Row of each particle in the original stack, (n_particles,) int64; None where unknown."""
    if name is None:
        return np.arange(n_particles)
    if isinstance(name, int):
        return np.arange(name)[:n_particles]
    path = _locate(name, workdir)
    if path is None:
        notes.append(f"Particles cannot be mapped to the original stack: {name} is not found.")
        return None
    indices = np.asarray(load_pickle(path))
    if indices.dtype == bool:
        indices = np.flatnonzero(indices)
    if indices.shape != (n_particles,) or indices.dtype.kind not in "iu":
        raise InputError(
            f"{path} (--ind of the training) should hold one index a particle, {n_particles}. Its "
            f"shape is {indices.shape}. Give the file that the training used."
        )
    files["ind"] = path
    return indices.astype(np.int64)
