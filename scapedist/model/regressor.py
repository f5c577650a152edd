"""The regression network of the paper, which predicts a volume's coordinates from its latent."""

from __future__ import annotations

import time

import numpy as np
import torch

HIDDEN_LAYERS, HIDDEN_SIZE = 3, 512
PREDICT_ROWS = 4096


def fit_and_predict(
    latents: np.ndarray,
    targets: np.ndarray,
    every: np.ndarray,
    epochs: int,
    learning_rate: float,
    seed: int,
    device: str = "cpu",
) -> tuple[np.ndarray, dict[str, float]]:
    """Train cryoDRGN's residual network on three quarters of the rows and apply it to all latents.

    Batches of 64, Adam, mean squared error, as in the paper's appendix A.2 and in
    ``analyze_landscape_full``; rows are shuffled anew for each epoch.

    Parameters
    ----------
    latents : (n, zdim) float32
    targets : (n, q) float
    every : (n_particles, zdim) float32
        Latents to predict for.
    epochs, learning_rate, seed
    device
        Where it is trained and applied: ``cpu`` or ``cuda``. Weights start from the same values.

    Returns
    -------
    (n_particles, q) float32
        Predictions.
    dict
        ``training_mse`` and ``validation_mse`` after the last epoch, and the ``seconds`` that
        predicting took.
    """
    from cryodrgn.models import ResidLinearMLP

    before = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        network = ResidLinearMLP(
            latents.shape[1], HIDDEN_LAYERS, HIDDEN_SIZE, targets.shape[1], torch.nn.ReLU
        ).to(device)
        order = torch.randperm(len(latents))
        n_validation = len(latents) // 4
        x = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(device)
        y = torch.from_numpy(np.ascontiguousarray(targets, np.float32)).to(device)
        held, taught = order[:n_validation], order[n_validation:]
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        loss_of = torch.nn.MSELoss()
        for _ in range(epochs):
            for rows in taught[torch.randperm(len(taught))].split(64):
                optimizer.zero_grad()
                loss_of(network(x[rows]), y[rows]).backward()
                optimizer.step()
        with torch.inference_mode():
            losses = {"training_mse": float(loss_of(network(x[taught]), y[taught]))}
            if n_validation:
                losses["validation_mse"] = float(loss_of(network(x[held]), y[held]))
            started = time.perf_counter()
            blocks = torch.from_numpy(np.ascontiguousarray(every, np.float32)).split(PREDICT_ROWS)
            predicted = torch.cat([network(block.to(device)).cpu() for block in blocks])
            losses["seconds"] = time.perf_counter() - started
    finally:
        torch.set_rng_state(before)
    return predicted.numpy(), losses
