"""What is read from a pickle, what is refused, and that nothing runs."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scapedist.errors import InputError
from scapedist.files.safe_pickle import load_pickle, load_pickles


class Payload:
    """Unpickled by pickle itself, this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


def write(path, *objects, protocol=None):
    with path.open("wb") as stream:
        for item in objects:
            pickle.dump(item, stream, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(5, dtype=">i4"),
        np.array([True, False]),
        np.array(["a", "bc"]),
        np.zeros((0, 3)),
    ],
    ids=["float32", "fortran", "big-endian", "bool", "text", "empty"],
)
def test_arrays_of_every_protocol_are_read(tmp_path, array, protocol):
    found = load_pickle(write(tmp_path / "a.pkl", array, protocol=protocol))
    assert found.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    array=hnp.arrays(np.float32, hnp.array_shapes(max_dims=2), elements={"allow_nan": False}),
)
def test_plain_containers_are_read(tmp_path_factory, data, array):
    path = tmp_path_factory.mktemp("plain") / "a.pkl"
    found = load_pickles(write(path, data, {"array": array}))
    assert found[0] == data
    np.testing.assert_array_equal(found[1]["array"], array)


def test_numpy_scalars_sets_bytes_and_ordered_dictionaries_are_read(tmp_path):
    data = {
        "norm": [np.float32(0.5), np.float64(2)],
        "ordered": OrderedDict(b=1, a=2),
        "set": {1, 2},
        "bytes": b"\xff\x00",
        "bytearray": bytearray(b"abc"),
    }
    for protocol in (2, 4, 5):
        assert load_pickle(write(tmp_path / "a.pkl", data, protocol=protocol)) == data


def test_names_of_numpy_1_are_read(tmp_path):
    """Files that numpy 1 wrote name numpy.core, which numpy 2 calls numpy._core."""
    data = pickle.dumps(np.arange(3.0), protocol=2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data
    (tmp_path / "a.pkl").write_bytes(old)
    np.testing.assert_array_equal(load_pickle(tmp_path / "a.pkl"), np.arange(3.0))


def test_several_pickles_are_read_in_order(tmp_path):
    found = load_pickles(write(tmp_path / "z.pkl", np.zeros(2), np.ones(3), "end"))
    assert [len(found[0]), len(found[1]), found[2]] == [2, 3, "end"]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, {"a": x}]], ids=["bare", "nested"])
def test_code_is_refused_and_does_not_run(tmp_path, wrap):
    ran = tmp_path / "ran"
    path = write(tmp_path / "a.pkl", np.zeros(3), wrap(Payload(ran)))
    with pytest.raises(InputError, match=r"refers to builtins\.exec.*as cryoDRGN wrote it"):
        load_pickles(path)
    assert not ran.exists()
    with path.open("rb") as stream:  # pickle itself does run it: the test tests something
        pickle.load(stream)
        pickle.load(stream)
    assert ran.exists()


@pytest.mark.parametrize("item", [Path("x"), Payload, np.random.default_rng(0), print])
def test_anything_else_is_refused(tmp_path, item):
    with pytest.raises(InputError, match="not a pickle of numpy arrays and plain containers"):
        load_pickles(write(tmp_path / "a.pkl", item))


def test_arrays_of_objects_are_refused(tmp_path):
    """A forged dtype of objects would turn the file's bytes into pointers."""
    with pytest.raises(InputError, match="array of object"):
        load_pickles(write(tmp_path / "a.pkl", np.array([None, "a"], dtype=object)))
    with pytest.raises(InputError, match="array of"):
        load_pickles(write(tmp_path / "a.pkl", np.zeros(2, [("a", "f4"), ("b", "i4")])))


def test_every_truncation_is_refused_or_leaves_whole_objects(tmp_path):
    whole = pickle.dumps(np.arange(6.0)) + pickle.dumps(np.arange(3.0))
    first = len(pickle.dumps(np.arange(6.0)))
    path = tmp_path / "z.pkl"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size == first:
            assert len(load_pickles(path)) == 1
            continue
        with pytest.raises(InputError, match=r"cut short|is empty"):
            load_pickles(path)


@pytest.mark.parametrize("content", [b"\x00" * 100, b"not a pickle", b"\x80\x04."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pkl"):
        load_pickles(tmp_path / "a.pkl")


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_pickles(tmp_path / "missing.pkl")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_pickles(tmp_path)
