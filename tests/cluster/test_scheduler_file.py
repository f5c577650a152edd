"""The batch script with a scheduler file, run with a Slurm that is this machine."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from harm import arrays

SCRIPT = Path(__file__).parents[2] / "cluster_configs" / "slurm_scheduler_file.sh"
WORDS = ["--sketch-size", "8", "--states", "2", "--components", "2", "--batch-size", "2"]


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(slurm, small_workdir, decoded_here, tmp_path):
    job = subprocess.run(
        ["bash", SCRIPT, small_workdir, "19", tmp_path / "run", *WORDS, "--embed", "none"],
        cwd=tmp_path,
        env=os.environ | {"SLURM_NTASKS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    printed = job.stdout
    assert job.returncode == 0, printed
    assert len(re.findall(r"Start worker at:\s+tls://", printed)) == 2
    assert set(re.findall(r"dashboard at:\s+(?:http://)?(\S+):", printed)) == {"127.0.0.1"}
    assert not list(tmp_path.glob("scapedist-job-*"))  # the key is gone
    assert (tmp_path / "run" / "report.html").is_file()
    found = arrays(tmp_path / "run")
    for name, values in arrays(decoded_here).items():
        assert values.tobytes() == found[name].tobytes(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpus_of_a_job(slurm, small_workdir, tmp_path):
    job = subprocess.run(
        ["bash", SCRIPT, small_workdir, "19", tmp_path / "run", *WORDS, "--embed", "none"],
        cwd=tmp_path,
        env=os.environ | {"SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert job.returncode == 0, job.stdout
    assert len(re.findall(r"Start worker at:\s+tls://", job.stdout)) == 1
    assert (tmp_path / "run" / "report.html").is_file()


def test_it_says_how_it_is_called():
    job = subprocess.run(["bash", SCRIPT, "WORKDIR"], capture_output=True, text=True)
    assert job.returncode == 2
    assert "sbatch slurm_scheduler_file.sh WORKDIR EPOCH RUN" in job.stderr
