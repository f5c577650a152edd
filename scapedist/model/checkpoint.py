"""Reading the decoder of a checkpoint: weights as plain arrays, in order, checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar

from scapedist.errors import InputError
from scapedist.model.decoder import Decoder

if TYPE_CHECKING:  # what decodes nothing starts without torch
    import torch


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The plain tensors and containers of a weights file; nothing in it is executed."""
    import torch

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


def read_decoder(config: dict[str, Any], path: Path) -> Decoder:
    """The decoder of a weights file.

    Parameters
    ----------
    config
        The training's configuration.
    path
        The weights file, ``weights.N.pkl``.

    Raises
    ------
    InputError
        Where the file is half-written, not what it should be, or does not fit the configuration.
    """
    checkpoint = load_checkpoint(path)
    read = _read_hypervolume if "hypervolume_params" in checkpoint else _read_positional
    try:
        decoder = read(config, checkpoint, path)
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
    return decoder


def _read_positional(config: dict[str, Any], checkpoint: dict[str, Any], path: Path) -> Decoder:
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
        frequencies = (state[random_name].double() * half).numpy()
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
    return Decoder(
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


def _read_hypervolume(config: dict[str, Any], checkpoint: dict[str, Any], path: Path) -> Decoder:
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
    frequencies = (state["rand_freqs"].double() * (points_across // 2)).numpy()
    layers = _read_layers(state, "mlp.main.", path)
    latent_frequencies = None
    n_latent_features = zdim
    if params.get("pe_type_conf") == "geom":
        latent_frequencies = state["geom_freqs_conf"].float().numpy()
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
    return Decoder(
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


def _plain_name(name: str) -> str:
    """A parameter's name without the prefixes that DataParallel adds."""
    for prefix in ("module.", "dp.module."):
        name = name.removeprefix(prefix)
    return name.replace(".module.", ".")


def _read_layers(
    state: dict[str, torch.Tensor], prefix: str, path: Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The linear layers (weight (out, in), bias (out,)) in order, skip connections folded in."""
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
        weight = state[f"{prefix}{number}.{residual}weight"].double().numpy()
        bias = state[f"{prefix}{number}.{residual}bias"].double().numpy()
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise InputError(
                f"Weights are finite numbers. Layer {number} of {path} has some that are not: "
                "the training diverged. Choose an earlier epoch."
            )
        if residual:
            weight = weight + np.eye(len(weight))
        layers.append((weight, bias))
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
    import torch  # in its float32, as cryoDRGN has them

    highest, ratio = spans[encoding]
    steps = torch.arange(n_frequencies, dtype=torch.float32) / (n_frequencies - 1)
    return (highest * ratio**steps).numpy()
