"""The field apart from any outside reference: blocks, batches, precisions, bad input."""

import pickle
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scapedist import open_model
from scapedist.errors import InputError, ResourceError
from scapedist.model import field as field_module
from scapedist.model.decoder import DTYPES, GPU_ONLY, check_dtype, check_latents
from scapedist.model.field import Field, device_activations
from scapedist.model.layers import matrix_precision


@pytest.fixture(scope="module")
def model(small_workdir):
    return open_model(small_workdir, 19)


@pytest.mark.parametrize("rows", [1, 7, 100, 10**6])
def test_blocks_of_any_size_give_the_same(model, monkeypatch, rows):
    latents = model.latents[:3]
    wanted = Field(model.decoder, dtype="float64").decode(latents)
    monkeypatch.setattr(Field, "block_rows", lambda self: rows)
    found = Field(model.decoder, dtype="float64").decode(latents)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * wanted.abs().max().item())


def test_a_kept_first_layer_changes_nothing(model, monkeypatch):
    """Kept between batches or computed again, at one box after another."""
    keeping = Field(model.decoder)
    monkeypatch.setattr(field_module, "CACHE_BYTES", 0)
    computing = Field(model.decoder)
    for box_size in (16, 10, 10, 16):
        for latents in (model.latents[:2], model.latents[2:3]):
            torch.testing.assert_close(
                keeping.decode(latents, box_size),
                computing.decode(latents, box_size),
                rtol=0,
                atol=0,
            )


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_any_order_and_any_cut_into_batches_gives_the_same_bytes(model, order, cut):
    whole = model.decode(model.latents[:6])
    latents = model.latents[np.array(order)]
    parts = np.concatenate([model.decode(latents[:cut]), model.decode(latents[cut:])])
    np.testing.assert_array_equal(parts, whole[np.array(order)])


def test_no_latents_give_no_volumes(model):
    assert model.decode(np.zeros((0, 3))).shape == (0, 16, 16, 16)


def test_latents_of_any_layout_and_type_are_taken(model):
    latents = np.array([[1, -2, 0], [0, 3, 1]])
    wanted = model.decode(latents.astype(np.float32))
    for same in (latents, latents.astype(np.float64), latents.tolist(), np.asfortranarray(latents)):
        np.testing.assert_array_equal(model.decode(same), wanted)
    np.testing.assert_array_equal(model.decode(latents[0])[0], wanted[0])
    wide = np.zeros((2, 6), np.float32)
    wide[:, ::2] = latents
    np.testing.assert_array_equal(model.decode(wide[:, ::2]), wanted)


def test_latents_are_not_changed(model):
    latents = model.latents[:2].copy()
    model.decode(latents)
    np.testing.assert_array_equal(latents, model.latents[:2])


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in GPU_ONLY])
def test_volumes_are_float32_but_of_a_float64_field(model, dtype):
    volumes = Field(model.decoder, dtype=dtype).decode(model.latents[:1])
    assert volumes.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert not volumes.is_inference()
    assert model.decode(model.latents[:1], dtype=dtype).dtype == np.float32
    assert torch.isfinite(volumes).all()


def test_a_decoder_travels_to_other_processes(model):
    decoder = pickle.loads(pickle.dumps(model.decoder))
    latents = model.latents[:2]
    torch.testing.assert_close(
        Field(decoder).decode(latents), Field(model.decoder).decode(latents), rtol=0, atol=0
    )


def test_counts(model):
    decoder = model.decoder
    assert decoder.hidden_size == 16
    assert decoder.flops_per_point == 2 * (16 * 16 + 16 * 16 + 2 * 16)


# Bad input


@pytest.mark.parametrize(
    "latents",
    [
        np.zeros((2, 4)),
        np.zeros((3, 2, 3)),
        np.zeros(2),
        np.array([["a", "b", "c"]]),
        np.array([[None, 1, 2]]),
        np.zeros((1, 3), complex),
    ],
    ids=["wide", "3-D", "short", "text", "objects", "complex"],
)
def test_latents_of_another_kind_are_refused(model, latents):
    with pytest.raises(InputError, match=r"latent dimension, 3\. .*of shape \(n, 3\)"):
        model.decode(latents)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_latents_that_are_not_numbers_are_refused(model, value):
    latents = np.zeros((5, 3))
    latents[2, 1] = latents[4, 0] = value
    with pytest.raises(InputError, match=r"2 rows are not, row 2 first\. Remove these rows"):
        model.decode(latents)
    with pytest.raises(InputError, match="2 rows"):
        check_latents(latents, 3)


@pytest.mark.parametrize("box_size", [15, 18, -2, 1])
def test_boxes_that_the_model_cannot_give_are_refused(model, box_size):
    with pytest.raises(InputError, match="Choose an even number up to 16"):
        model.decode(model.latents[:1], box_size)


def test_precisions_that_there_are_not_are_refused(model):
    with pytest.raises(InputError, match=r"one of float64, float32.*It is 'float8'"):
        model.decode(model.latents[:1], dtype="float8")
    for dtype in GPU_ONLY:
        with pytest.raises(InputError, match=rf"{dtype} needs a GPU.*Use float32"):
            Field(model.decoder, dtype=dtype)
        check_dtype(dtype, "cuda")


def exhausted_above(monkeypatch, most_rows, text):
    """Let blocks of activations above a size fail as a device does that lacks memory."""
    plain, failures = Field._buffers, []

    def short(self, rows):
        if rows > most_rows:
            failures.append(rows)
            raise RuntimeError(text)
        return plain(self, rows)

    monkeypatch.setattr(Field, "_buffers", short)
    return failures


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "std::bad_alloc: out_of_memory: CUDA error",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_does_not_suffice_is_halved(model, monkeypatch, text):
    latents = model.latents[:3]
    wanted = Field(model.decoder).decode(latents)
    failures = exhausted_above(monkeypatch, 300, text)
    sparing = Field(model.decoder, memory_bytes=2**28)
    before = sparing.memory_bytes
    found = torch.stack(list(sparing.volumes(latents)))
    assert failures
    assert sorted(failures, reverse=True) == failures
    assert sparing.memory_bytes < before
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * wanted.abs().max().item())
    n_failures = len(failures)
    sparing.decode(latents)  # it is remembered
    assert len(failures) == n_failures


def test_a_volume_that_does_not_fit_at_all(model, monkeypatch):
    exhausted_above(monkeypatch, 0, "out of memory")
    with pytest.raises(ResourceError, match=r"One volume at a time.*GiB.*--box-size"):
        Field(model.decoder, memory_bytes=2**30).decode(model.latents[:1])


def test_other_errors_are_not_taken_for_missing_memory(model, monkeypatch):
    exhausted_above(monkeypatch, 0, "device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side assert"):
        Field(model.decoder, memory_bytes=2**30).decode(model.latents[:1])


@pytest.mark.parametrize("memory_bytes", [2**20, 2**23, 2**30])
def test_volumes_within_any_memory_are_the_same(model, memory_bytes):
    latents = model.latents[:5]
    exact = Field(model.decoder, dtype="float64")
    wanted = exact.decode(latents)
    sparing = Field(model.decoder, dtype="float64", memory_bytes=memory_bytes)
    found = torch.stack(list(sparing.volumes(latents)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * wanted.abs().max().item())


def test_a_field_on_a_device(model, device):
    """Every precision that the device has, volumes and features, against float64 on the CPU."""
    latents = model.latents[:3]
    exact = Field(model.decoder, dtype="float64")
    wanted = exact.decode(latents)
    points = np.ascontiguousarray(exact.lattice().coordinates[:50])
    features = exact.features(latents, points, 20)
    tolerances = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2, "tf32": 5e-3}
    tolerances["float16x3"] = 1e-5
    for dtype, tolerance in tolerances.items():
        if dtype in GPU_ONLY and device == "cpu":
            continue
        some = Field(model.decoder, device, dtype)
        found = some.decode(latents).cpu().double()
        assert (found - wanted).norm() < tolerance * wanted.norm()
        found = some.features(latents, points, 20).cpu().double()
        assert (found - features).norm() < tolerance * features.norm()


@pytest.mark.parametrize(
    ("cache_mib", "activation_bytes", "activations"),
    [(50, 4, 2**23), (40, 4, 2**23), (126, 4, 2**24), (50, 8, 2**22), (50, 10, 2**22),
     (6, 4, 2**22), (4000, 4, 2**26)],
)  # fmt: skip
def test_activations_fit_the_cache_of_a_gpu(cache_mib, activation_bytes, activations):
    """Of an H100 or H200, an A100, a B200; in float32 and float16x3; of one that is too small."""
    assert device_activations(cache_mib * 2**20, activation_bytes) == activations


def test_precisions_are_as_they_were_afterwards():
    """What a precision asks of the matrix units holds for the field's own products alone."""
    units = torch.backends.cuda.matmul

    def chosen():
        return (
            torch.get_float32_matmul_precision(),
            units.allow_fp16_reduced_precision_reduction,
            units.allow_bf16_reduced_precision_reduction,
        )

    before, seen = chosen(), []
    with matrix_precision("bfloat16"):
        seen.append(chosen())
    assert seen == [("highest", False, False)]
    with suppress(ValueError), matrix_precision("tf32"):
        seen.append(chosen())
        raise ValueError("stopped")
    assert seen[1] == ("high", False, False)
    assert chosen() == before
