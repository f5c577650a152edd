"""Extras are bounded, the two for CUDA exclude each other, each lock holds what its extra needs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]

PYTHONS = ["3.11", "3.12", "3.13"]
CUDA = {"cuda12": ("cu12", "cuda12x"), "cuda13": ("cu13", "cuda13x")}
LOCKED_WITH_CUDA = ["umap", "slurm", "kubernetes", "test"]
# Each is held back by what the extras ask for; all else is as in constraints.txt.
HELD_BACK = {
    "cuda12": {"dask", "distributed", "llvmlite", "numba", "numpy", "pandas", "torch", "triton"},
    "cuda13": {"dask", "distributed", "llvmlite", "numba", "pandas"},
}
LINE = re.compile(
    r'([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][0-9a-z.]*)(; python_version (?:<|>=) "3\.1[0-9]")?'
)


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def lock_lines(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def locked(name: str, python: str) -> dict[str, str]:
    """Return the one version of each package that a lock names for a Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    versions: dict[str, str] = {}
    for line in lock_lines(name):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            package = canonicalize_name(requirement.name)
            assert package not in versions, f"{name} names {package} twice for Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            versions[package] = specifier.version
    return versions


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("cuda12", {"cuml-cu12", "cupy-cuda12x", "dask-cuda", "torch"}),
        ("cuda13", {"cuml-cu13", "cupy-cuda13x", "dask-cuda", "numba", "torch"}),
        ("slurm", {"cryptography", "dask-jobqueue"}),
        ("kubernetes", {"dask-kubernetes"}),
    ],
)
def test_an_extra_bounds_what_it_asks_for(extra, packages):
    asked = requirements(EXTRAS[extra])
    assert set(asked) == packages
    for name, requirement in asked.items():
        assert not requirement.specifier.contains("0.1"), f"{name} has no lower bound"
        if name not in ("cryptography", "dask-kubernetes"):  # their versions are no promises
            assert not requirement.specifier.contains("9999"), f"{name} has no upper bound"


def test_no_torch_is_in_both_cuda_extras():
    releases = [
        f"{major}.{minor}.{patch}" for major in (2, 3) for minor in range(60) for patch in (0, 1)
    ]
    base = requirements(PYPROJECT["project"]["dependencies"])["torch"].specifier
    fits = {
        extra: {v for v in releases if v in (requirements(EXTRAS[extra])["torch"].specifier & base)}
        for extra in CUDA
    }
    assert all(fits.values())
    assert not fits["cuda12"] & fits["cuda13"]


def test_uv_is_told_that_the_cuda_extras_exclude_each_other():
    (conflict,) = PYPROJECT["tool"]["uv"]["conflicts"]
    assert {entry["extra"] for entry in conflict} == set(CUDA)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", CUDA)
def test_a_lock_names_a_fitting_version_of_every_direct_dependency(extra, python):
    versions = locked(f"constraints-{extra}.txt", python)
    for group in ["", extra, *LOCKED_WITH_CUDA]:
        asked = requirements(EXTRAS[group] if group else PYPROJECT["project"]["dependencies"])
        for name, requirement in asked.items():
            assert name in versions, f"{name} is not locked"
            assert requirement.specifier.contains(versions[name]), (
                f"{requirement}: {versions[name]}"
            )


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", CUDA)
def test_a_lock_has_the_packages_of_one_cuda_and_what_its_workers_need(extra, python):
    names = set(locked(f"constraints-{extra}.txt", python))
    suffix = CUDA[extra][0]
    other = next(suffixes for name, suffixes in CUDA.items() if name != extra)
    assert not [name for name in names if name.endswith(other)]
    assert {"dask-cuda", f"rmm-{suffix}", f"raft-dask-{suffix}", "nvidia-ml-py"} <= names


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", CUDA)
def test_a_lock_follows_constraints_txt_where_its_extra_lets_it(extra, python):
    versions, tested = locked(f"constraints-{extra}.txt", python), locked("constraints.txt", python)
    assert {n for n in versions.keys() & tested.keys() if versions[n] != tested[n]} == HELD_BACK[
        extra
    ]


@pytest.mark.parametrize("extra", CUDA)
def test_a_lock_is_a_short_note_and_plain_versions(extra):
    name = f"constraints-{extra}.txt"
    head, body = (ROOT / name).read_text().splitlines()[:3], lock_lines(name)
    assert all(line.startswith("# ") for line in head)
    assert f"pip install -c {name} '.[{extra}]'" in head[0]
    assert (ROOT / name).read_text().splitlines()[3:] == body
    assert [line for line in body if not LINE.fullmatch(line)] == []
