"""A run is laid out as versions before laid it out, and is the same from any number of workers."""

import shutil
from pathlib import Path

import pytest
from same_run import differences, layout

from scapedist.landscape import Run, analyze, open_workers

LAID_OUT = Path(__file__).with_name("layout.txt")
"""What ``python tests/same_run.py RUN`` printed of this run before the modules were moved."""


def small_run(workdir, output, n_workers):
    """A run of the bundled model with an embedding and all that builds on it."""
    options = {"size": 24, "box_size": 12, "states": 3, "components": 3, "quality_groups": 2}
    analyze(workdir, 14, output, n_workers=n_workers, embedding="none", **options)
    with open_workers(n_workers) as workers:
        run = Run(output).embed(workers, method="mlp", components=2)
        run.crosscheck(workers, sample=20)
        run.population(workers, groups=3)
    run.report()
    return output


@pytest.fixture(scope="module")
def made(adk_workdir, tmp_path_factory):
    return small_run(adk_workdir, tmp_path_factory.mktemp("made") / "run", 1)


def test_the_layout_is_what_it_was(made):
    assert layout(made) == LAID_OUT.read_text().splitlines()


def test_two_workers_give_the_same_files(made, adk_workdir, tmp_path):
    other = small_run(adk_workdir, tmp_path / "run", 2)
    assert differences(made, other) == []


@pytest.mark.parametrize("name", ["landscape.zarr/states/label/c.0", "maps/mask.mrc"])
def test_a_byte_that_differs_is_found(made, tmp_path, name):
    shutil.copytree(made, tmp_path / "run")
    path = tmp_path / "run" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert differences(made, tmp_path / "run") == [f"differs: {name}"]
    path.unlink()
    assert differences(made, tmp_path / "run") == [f"only in {made}: {name}"]
