"""Lists of particles: every accepted form, every refusal, and cryoDRGN reading ours."""

import argparse
import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from scapedist.errors import InputError
from scapedist.files.particle_lists import read_indices, write_state_particles

N_PARTICLES = 10


def save(path: Path, content: object) -> Path:
    if path.suffix == ".npy":
        np.save(path, np.asarray(content))
    elif path.suffix == ".txt":
        path.write_text(content if isinstance(content, str) else "\n".join(map(str, content)))
    else:
        path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("rows.pkl", np.array([7, 2, 2, 0]), [0, 2, 7]),
        ("rows.pkl", np.array([7, 2], dtype=np.uint16), [2, 7]),
        ("rows.pkl", [3, 1, 3], [1, 3]),
        ("rows.pkl", (9,), [9]),
        ("rows.pkl", {4, 1}, [1, 4]),
        ("rows.pkl", [np.int64(3), np.int64(1)], [1, 3]),
        ("rows.pkl", np.arange(N_PARTICLES) > 7, [8, 9]),
        ("rows.npy", np.array([5, 5, 4]), [4, 5]),
        ("rows.npy", np.arange(N_PARTICLES) < 2, [0, 1]),
        ("rows.txt", "3\n\n 1 \n3\n", [1, 3]),
        ("ROWS.TXT", [0, 9], [0, 9]),
    ],
)
def test_accepted(tmp_path: Path, name: str, content: object, rows: list[int]):
    path = tmp_path / name
    save(path.with_suffix(path.suffix.lower()), content).rename(path)
    found = read_indices(path, N_PARTICLES)
    np.testing.assert_array_equal(found, rows)
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.pkl", np.array([1, 10, 12]), "names 2 outside: 10, 12"),
        ("rows.pkl", np.array([-1]), "names 1 outside: -1"),
        ("rows.txt", list(range(10, 20)), r"names 10 outside: 10, 11, 12, 13, 14, \.\.\."),
        ("rows.pkl", np.array([], dtype=int), "names at least one particle"),
        ("rows.txt", "\n", "names at least one particle"),
        ("rows.npy", np.zeros(N_PARTICLES, bool), "names at least one particle"),
        ("rows.pkl", np.ones(4, bool), "has 4, there are 10 particles"),
        ("rows.pkl", np.array([1.0, 2.0]), "holds float64 values"),
        ("rows.pkl", ["1", "2"], "integers, counted from 0"),
        ("rows.pkl", [[1], [2, 3]], "1-D array of integers"),
        ("rows.pkl", np.zeros((2, 2), int), r"shape \(2, 2\)"),
        ("rows.pkl", {"rows": [1]}, "holds a dict"),
        ("rows.pkl", 3, "holds a int"),
        ("rows.txt", "1\ntwo\n", "Line 2 .* is 'two'"),
        ("rows.txt", "1.5\n", "Line 1 .* is '1.5'"),
        ("rows.txt", f"{2**70}\n", "beyond any particle"),
        ("rows.star", "1", r"\.pkl, \.npy or \.txt"),
    ],
)
def test_refused(tmp_path: Path, name: str, content: object, message: str):
    with pytest.raises(InputError, match=message):
        read_indices(save(tmp_path / name, content), N_PARTICLES)


@pytest.mark.parametrize("name", ["rows.pkl", "rows.npy", "rows.txt"])
@pytest.mark.parametrize("content", [None, b"", b"\x80\x04\xff\xfe half of something"])
def test_missing_and_damaged(tmp_path: Path, name: str, content: bytes | None):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        read_indices(tmp_path / name, N_PARTICLES)


class Malicious:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["rows.pkl", "rows.npy"])
def test_nothing_executes_from_a_file(tmp_path: Path, name: str):
    trap = Malicious(tmp_path / "executed")
    content = np.array([trap], dtype=object) if name.endswith("npy") else trap
    save(tmp_path / name, content)
    with pytest.raises(InputError):
        read_indices(tmp_path / name, N_PARTICLES)
    assert not (tmp_path / "executed").exists()


LABELS = np.array([0, 2, 0, -1, 1, 0, 2])
STACK = np.array([10, 11, 13, 17, 19, 23, 29])


def test_particles_of_states(tmp_path: Path):
    written = write_state_particles(tmp_path / "states", LABELS, STACK)
    assert [path.name for path in written] == [
        f"state_{state:03d}_{kind}.pkl" for state in range(3) for kind in ("rows", "stack")
    ]
    for state, rows in enumerate([[0, 2, 5], [4], [1, 6]]):
        for kind, values in (("rows", rows), ("stack", STACK[rows])):
            content = pickle.loads((tmp_path / f"states/state_{state:03d}_{kind}.pkl").read_bytes())
            assert content.dtype == np.int64
            np.testing.assert_array_equal(content, values)
    every = [
        read_indices(tmp_path / f"states/state_{s:03d}_rows.pkl", len(LABELS)) for s in (0, 1, 2)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(every)), np.flatnonzero(LABELS >= 0))


@pytest.mark.parametrize("links", [True, False])
def test_lists_of_the_same_numbers_are_one_file(tmp_path: Path, monkeypatch, links: bool):
    if not links:

        def refuse(path, target):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    for labels in (np.zeros(7, int), LABELS):  # the second time the names are taken
        write_state_particles(tmp_path, labels, np.arange(7))
    for state, rows in enumerate([[0, 2, 5], [4], [1, 6]]):
        paths = [tmp_path / f"state_{state:03d}_{kind}.pkl" for kind in ("rows", "stack")]
        for path in paths:
            np.testing.assert_array_equal(read_indices(path, 7), rows)
        assert paths[0].samefile(paths[1]) == links
    assert len(list(tmp_path.iterdir())) == 6
    write_state_particles(tmp_path, LABELS, STACK)
    assert not (tmp_path / "state_000_rows.pkl").samefile(tmp_path / "state_000_stack.pkl")


def test_files_of_an_earlier_call_go(tmp_path: Path):
    write_state_particles(tmp_path, LABELS, STACK)
    (tmp_path / "state_notes.pkl").write_bytes(b"a person's own")
    write_state_particles(tmp_path, np.minimum(LABELS, 1), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state_000_rows.pkl",
        "state_001_rows.pkl",
        "state_notes.pkl",
    ]
    assert write_state_particles(tmp_path, np.full(3, -1)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["state_notes.pkl"]


@pytest.mark.oracle
def test_cryodrgn_filters_a_star_file_by_them(tmp_path: Path):
    from cryodrgn.commands_utils import filter_star
    from cryodrgn.starfile import parse_star

    rows = "\n".join(f"{row:06d}@stack.mrcs {row}.5" for row in range(30))
    star = tmp_path / "all.star"
    star.write_text(f"\ndata_\n\nloop_\n_rlnImageName #1\n_rlnDefocusU #2\n{rows}\n")
    write_state_particles(tmp_path, LABELS, STACK)
    parser = argparse.ArgumentParser()
    filter_star.add_args(parser)
    arguments = parser.parse_args(
        [
            str(star),
            "--ind",
            str(tmp_path / "state_002_stack.pkl"),
            "-o",
            str(tmp_path / "two.star"),
        ]
    )
    filter_star.main(arguments)
    kept, _ = parse_star(str(tmp_path / "two.star"))
    assert list(kept["_rlnImageName"]) == ["000011@stack.mrcs", "000029@stack.mrcs"]
