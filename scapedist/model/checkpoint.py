"""From a cryoDRGN work directory to a model: configuration, weights, latents, pixel size."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy._core.multiarray import _reconstruct, scalar

from scapedist.errors import InputError
from scapedist.model.field import Decoder, Field, check_latents
from scapedist.model.safe_pickle import load_pickle, load_pickles


@dataclass
class Model:
    """A trained model and the particles it was trained on.

    Attributes
    ----------
    decoder
        The decoder's weights and rules.
    latents : (n_particles, zdim) float32
        Latent means.
    latent_variance : (n_particles, zdim) float32 or None
        Posterior variances, where the work directory has them.
    box_size
        Voxels along an edge.
    pixel_size_angstroms
        Of the full box, from the CTF file; None where it is unknown.
    stack_indices : (n_particles,) int64 or None
        Row in the original stack of each particle, where the training used ``--ind`` and the
        file is found; without ``--ind`` the rows themselves.
    files
        Name -> path of the files it was read from.
    notes
        What a user should know of the loading (a file not found, a size not known).
    """

    decoder: Decoder
    latents: np.ndarray
    latent_variance: np.ndarray | None
    box_size: int
    pixel_size_angstroms: float | None
    stack_indices: np.ndarray | None
    files: dict[str, Path]
    architecture: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    _fields: dict[str, Field] = field(default_factory=dict, repr=False)

    def decode(
        self, latents: np.ndarray, box_size: int | None = None, dtype: str = "float32"
    ) -> np.ndarray:
        """Density maps of latents.

        Parameters
        ----------
        latents : (n, zdim) float
        box_size
            Voxels along an edge, even, at most the model's (default). Smaller boxes are Fourier
            crops: the same extent in angstroms, larger pixels.
        dtype
            Precision of the evaluation: ``float32``, ``float64``, ``bfloat16``, ``float16``.

        Returns
        -------
        (n, d, d, d) float32 array, axes z, y, x.
        """
        if dtype not in self._fields:
            self._fields[dtype] = Field(self.decoder, dtype=dtype)
        volumes = self._fields[dtype].decode(np.atleast_2d(latents), box_size)
        return volumes.to(torch.float32).numpy()

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of each file the model was read from."""
        return {name: sha256_of(path) for name, path in self.files.items()}


def open_model(workdir: str | Path, epoch: int) -> Model:
    """Load a trained model.

    Parameters
    ----------
    workdir
        Directory with ``config.yaml`` (or an old ``config.pkl``), ``weights.N.pkl``, ``z.N.pkl``
        of cryoDRGN's ``train_vae``, ``train_dec`` or ``abinit``.
    epoch
        N; -1 for ``weights.pkl`` and ``z.pkl``.

    Raises
    ------
    InputError
        Where a file is missing, half-written, not what it should be, or does not fit the others.
    """
    workdir = Path(workdir)
    files = _find_files(workdir, epoch)
    config = read_config(files["config"])
    checkpoint = load_checkpoint(files["weights"])
    decoder, architecture = _read_decoder(config, checkpoint, files["weights"])
    latents, variance = _read_latents(files["latents"], decoder.zdim, architecture["command"])
    notes: list[str] = []
    dataset = config.get("dataset_args") or {}
    pixel_size = _read_pixel_size(dataset.get("ctf"), workdir, decoder.box_size, files, notes)
    stack_indices = _read_stack_indices(dataset.get("ind"), workdir, len(latents), files, notes)
    return Model(
        decoder=decoder,
        latents=latents,
        latent_variance=variance,
        box_size=decoder.box_size,
        pixel_size_angstroms=pixel_size,
        stack_indices=stack_indices,
        files=files,
        architecture=architecture,
        notes=notes,
    )


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
    """Plain YAML, with Python tuples read as lists (older configurations have them)."""


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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A weights file as plain tensors and containers; nothing in it is executed."""
    numpy_types: list[Any] = [
        np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType,
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
        _reconstruct, scalar,
    ]  # fmt: skip
    try:
        with torch.serialization.safe_globals(numpy_types):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} is not a checkpoint of plain tensors, or is cut short ({reason}). "
            "Give the file as cryoDRGN wrote it."
        ) from None
    if not isinstance(checkpoint, dict) or not (
        {"model_state_dict", "hypervolume_state_dict"} & set(checkpoint)
    ):
        raise InputError(
            f"{path} is not a cryoDRGN checkpoint: it holds no model_state_dict. "
            "Give a weights file of train_vae, train_dec or abinit."
        )
    return checkpoint


def _read_decoder(
    config: dict[str, Any], checkpoint: dict[str, Any], path: Path
) -> tuple[Decoder, dict[str, Any]]:
    """The decoder and a description of it, from a configuration and a checkpoint."""
    read = _read_hypervolume if "hypervolume_params" in checkpoint else _read_positional
    try:
        decoder, architecture = read(config, checkpoint, path)
    except KeyError as error:
        raise InputError(
            f"The configuration and {path} belong together, but {error} is missing. "
            "Give both as one training wrote them."
        ) from None
    if not np.isfinite(decoder.frequencies).all():
        raise InputError(
            f"An encoding's frequencies are finite numbers. Those of {path} are not: the file is "
            "damaged. Copy it again."
        )
    return decoder, architecture


def _read_positional(
    config: dict[str, Any], checkpoint: dict[str, Any], path: Path
) -> tuple[Decoder, dict[str, Any]]:
    arguments, lattice = config["model_args"], config["lattice_args"]
    command = "train_vae" if "players" in arguments else "train_dec"
    prefix = "decoder.decoder." if command == "train_vae" else "decoder."
    state = {_plain_name(k): v for k, v in checkpoint["model_state_dict"].items()}
    zdim, points_across = int(arguments["zdim"] or 0), int(lattice["D"])
    if zdim == 0:
        raise InputError(
            f"{path} is of a homogeneous reconstruction: it has no latents to analyse."
        )
    encoding, domain = arguments["pe_type"], arguments["domain"]
    if encoding == "none" and domain == "hartley":
        prefix = prefix.removesuffix("decoder.")
    layers = _read_layers(state, f"{prefix}main.", path)
    half, even = points_across // 2, 2 * (points_across // 2)
    n_frequencies = int(arguments.get("pe_dim") or half)
    n_features = 3 if encoding == "none" else 6 * n_frequencies
    random_name = prefix.removesuffix("decoder.") + "rand_freqs"
    frequencies = np.zeros(0, np.float32)
    if encoding == "gaussian":
        frequencies = (state[random_name].to(torch.float64) * half).numpy()
    elif random_name in state:
        raise InputError(
            f"The weights fit the configuration. {path} has the gaussian encoding, the "
            f"configuration names {encoding}. Give both as one training wrote them."
        )
    elif encoding != "none":
        frequencies = _geometric_frequencies(encoding, n_frequencies, half, even, path)
    names = ("players", "pdim") if command == "train_vae" else ("layers", "dim")
    n_layers, width = (int(arguments[name]) for name in names)
    n_outputs = 2 if domain == "fourier" else 1
    _check_fit(layers, n_features + zdim, n_layers, width, n_outputs, path)
    kind = {"fourier": "fourier_sphere", "hartley": "hartley_cube"}[domain]
    if encoding == "none" and domain == "fourier":
        kind = "fourier_slice"
    norm = [float(x) for x in (config.get("dataset_args") or {})["norm"]]
    decoder = Decoder(
        kind=kind,
        encoding=encoding if encoding in ("gaussian", "none") else "axes",
        frequencies=frequencies,
        weights=tuple(weight for weight, _ in layers),
        biases=tuple(bias for _, bias in layers),
        negative_slope={"relu": 0.0, "leaky_relu": 0.01}[arguments.get("activation", "relu")],
        zdim=zdim,
        box_size=points_across - 1,
        extent=float(lattice.get("extent", 0.5)),
        norm=(norm[0], norm[1]),
    )
    return decoder, _describe(decoder, command, encoding, domain)


def _read_hypervolume(
    config: dict[str, Any], checkpoint: dict[str, Any], path: Path
) -> tuple[Decoder, dict[str, Any]]:
    params = checkpoint["hypervolume_params"]
    state = {_plain_name(k): v for k, v in checkpoint["hypervolume_state_dict"].items()}
    if params["pe_type"] != "gaussian" or params["domain"] != "hartley":
        raise InputError(
            f"abinit models have a gaussian encoding and the hartley domain. {path} has "
            f"{params['pe_type']} and {params['domain']}, which cryoDRGN cannot evaluate either."
        )
    points_across, zdim = int(params["resolution"]), int(params["z_dim"] or 0)
    if zdim == 0:
        raise InputError(
            f"{path} is of a homogeneous reconstruction: it has no latents to analyse."
        )
    frequencies = (state["rand_freqs"].to(torch.float64) * (points_across // 2)).numpy()
    layers = _read_layers(state, "mlp.main.", path)
    latent_frequencies = None
    n_latent_features = zdim
    if params.get("pe_type_conf") == "geom":
        latent_frequencies = state["geom_freqs_conf"].to(torch.float32).numpy()
        n_latent_features = zdim * 2 * len(latent_frequencies)
    n_inputs = 6 * int(params["pe_dim"]) + n_latent_features
    _check_fit(layers, n_inputs, int(params["n_layers"]), int(params["hidden_dim"]), 1, path)
    stated = int(config["lattice_args"]["D"]), int(config["model_args"]["zdim"] or 0)
    if stated != (points_across, zdim):
        raise InputError(
            f"The weights fit the configuration. {path} has the box {points_across - 1} and "
            f"{zdim} latent dimensions, the configuration {stated[0] - 1} and {stated[1]}. "
            "Give both as one training wrote them."
        )
    radius = checkpoint.get("output_mask_radius")
    decoder = Decoder(
        kind="hypervolume",
        encoding="gaussian",
        frequencies=frequencies,
        weights=tuple(weight for weight, _ in layers),
        biases=tuple(bias for _, bias in layers),
        negative_slope=0.0,
        zdim=zdim,
        box_size=points_across - 1,
        extent=0.5,
        norm=(float(config["data_norm_mean"]), float(config["data_norm_std"])),
        latent_frequencies=latent_frequencies,
        mask_radius=None if radius is None else float(radius),
    )
    return decoder, _describe(decoder, "abinit", "gaussian", "hartley")


def _describe(decoder: Decoder, command: str, encoding: str, domain: str) -> dict[str, Any]:
    return {
        "command": command,
        "encoding": encoding,
        "domain": domain,
        "activation": "leaky_relu" if decoder.negative_slope else "relu",
        "hidden_layers": len(decoder.weights) - 2,
        "hidden_size": decoder.hidden_size,
        "zdim": decoder.zdim,
        "box_size": decoder.box_size,
    }


def _plain_name(name: str) -> str:
    """A parameter's name without the prefixes that DataParallel adds."""
    for prefix in ("module.", "dp.module."):
        name = name.removeprefix(prefix)
    return name.replace(".module.", ".")


def _read_layers(
    state: dict[str, torch.Tensor], prefix: str, path: Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Linear layers (weight (out, in), bias (out,)) in order, skip connections folded in."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.(linear\.)?weight")
    found = sorted(
        (int(match[1]), match[2] or "")
        for name in state
        if (match := pattern.fullmatch(name)) is not None
    )
    if len(found) < 2:
        raise InputError(
            f"{path} does not hold the decoder that the configuration names "
            f"(no weights below {prefix!r}). Give both as one training wrote them."
        )
    layers = []
    for number, residual in found:
        # float64: adding the skip connection's identity in float32 would round the weights
        weight = state[f"{prefix}{number}.{residual}weight"].to(torch.float64)
        bias = state[f"{prefix}{number}.{residual}bias"].to(torch.float64)
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise InputError(
                f"Weights are finite numbers. Layer {number} of {path} has some that are not: "
                "the training diverged. Choose an earlier epoch."
            )
        if residual:
            weight = weight + torch.eye(len(weight), dtype=weight.dtype)
        layers.append((weight.numpy(), bias.numpy()))
    return layers


def _check_fit(
    layers: list[tuple[np.ndarray, np.ndarray]],
    n_inputs: int,
    n_layers: int,
    width: int,
    n_outputs: int,
    path: Path,
) -> None:
    """Refuse layers that have other shapes than the configuration says."""
    found = [weight.shape for weight, _ in layers]
    stated = [(width, n_inputs), *[(width, width)] * n_layers, (n_outputs, width)]
    if found != stated:
        raise InputError(
            f"The weights fit the configuration. The layers of {path} have the shapes "
            f"{', '.join(f'{o}x{i}' for o, i in found)}; the configuration gives "
            f"{', '.join(f'{o}x{i}' for o, i in stated)}. Give both as one training wrote them."
        )


def _geometric_frequencies(
    encoding: str, n_frequencies: int, half: int, even: int, path: Path
) -> np.ndarray:
    """Angular frequencies (n,) float32 of the encodings along the axes (Zhong et al. 2021)."""
    if encoding == "linear_lowf":
        if n_frequencies != half:
            raise InputError(
                f"linear_lowf has D/2 frequencies, {half}; the configuration says {n_frequencies}, "
                "which cryoDRGN cannot evaluate either."
            )
        return np.arange(1, half + 1, dtype=np.float32)
    spans = {  # highest frequency, lowest / highest
        "geom_ft": (even * np.pi, 2.0 / even),
        "geom_full": (even * np.pi, 1.0 / even / np.pi),
        "geom_lowf": (float(half), 1.0 / half),
        "geom_nohighf": (float(half), 2.0 * np.pi / half),
    }
    if encoding not in spans:
        raise InputError(
            f"{path} has the positional encoding {encoding!r}, which is not one of gaussian, "
            f"linear_lowf, {', '.join(spans)}, none."
        )
    if n_frequencies < 2:
        raise InputError(f"{encoding} needs two frequencies or more; {path} has {n_frequencies}.")
    highest, ratio = spans[encoding]
    steps = torch.arange(n_frequencies, dtype=torch.float32) / (n_frequencies - 1)
    return (highest * ratio**steps).numpy()


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
    """A file that the configuration names, where it was or beside the configuration."""
    if not isinstance(name, str):
        return None
    candidates = (Path(name), workdir / name, workdir.parent / name, workdir / Path(name).name)
    return next((path for path in candidates if path.is_file()), None)


def _read_pixel_size(
    name: object, workdir: Path, box_size: int, files: dict[str, Path], notes: list[str]
) -> float | None:
    """Angstroms a voxel of the full box, from the CTF file's first two columns (D, A/px)."""
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
