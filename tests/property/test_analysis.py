"""What holds for any data, any chunking and any budget."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from scapedist.analysis.gram import fit_components, gram_matrix, isometric_coordinates
from scapedist.analysis.linkage import LINKAGES, cut, link
from scapedist.analysis.mask import mask_from_claims
from scapedist.analysis.sketch import METHODS, make_sketch, quality_sample
from scapedist.analysis.states import medoids, number_by_size, weighted_moments
from scapedist.errors import InputError, ResourceError
from scapedist.plan import (
    UNLIMITED,
    Budget,
    batches,
    block_rows,
    parse_bytes,
    plan_decode,
    worker_bytes,
)

examples = settings(derandomize=True, deadline=None, max_examples=60)


def rows_of(bound=1e3):
    """Rows (n, p) float32."""
    values = st.floats(-bound, bound, width=32, allow_subnormal=False)
    shapes = st.tuples(st.integers(2, 14), st.integers(1, 20))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=values))


@examples
@given(st.integers(0, 500), st.integers(1, 600))
def test_batches_cover_exactly(n, size):
    spans = batches(n, size)
    assert [i for start, stop in spans for i in range(start, stop)] == list(range(n))
    assert all(stop - start == size for start, stop in spans[:-1])
    assert all(0 < stop - start <= size for start, stop in spans)


@examples
@given(
    box_size=st.integers(1, 128).map(lambda half: 2 * half),
    n_slots=st.integers(1, 10**6),
    n_weights=st.integers(1, 10**7),
    cached=st.integers(0, 2**30),
    batch_size=st.one_of(st.none(), st.integers(1, 200)),
    limit=st.one_of(st.none(), st.integers(1, 8 * 2**30)),
)
def test_a_plan_is_refused_exactly_when_it_does_not_fit(
    box_size, n_slots, n_weights, cached, batch_size, limit
):
    def need(size):
        return worker_bytes(size, box_size, n_slots, n_weights, cached)

    def make(size, allowed):
        budget = UNLIMITED if allowed is None else Budget(allowed)
        return plan_decode(
            100, box_size, n_slots, n_weights, cached, 4, batch_size=size, budget=budget
        )

    fits = limit is None or need(batch_size or 1) <= limit
    if fits:
        made = make(batch_size, limit)
        assert made.worker_bytes == need(made.batch_size)
        assert limit is None or made.worker_bytes <= limit
        assert batch_size in (None, made.batch_size)
        larger = made.batch_size + 1
        assert batch_size or larger > 8 or limit is None or need(larger) > limit
        return
    with pytest.raises(ResourceError) as caught:
        make(batch_size, limit)
    message = str(caught.value)
    if found := re.search(r"--batch-size (\d+) or less", message):
        assert make(int(found[1]), limit).batch_size == int(found[1])
        assert need(int(found[1]) + 1) > limit
    else:
        named = parse_bytes(re.findall(r"--memory-limit (\S+) or more", message)[0])
        assert need(1) > limit
        assert make(1, named).batch_size == 1


@examples
@given(st.integers(1, 10**7), st.one_of(st.none(), st.integers(2**24, 2**40)))
def test_a_block_of_rows_stays_in_its_share(n_voxels, limit):
    rows = block_rows(n_voxels, UNLIMITED if limit is None else Budget(limit))
    budget = 128 * 2**20 if limit is None else limit // 8
    assert rows == 1 or rows * n_voxels * 8 <= budget


@examples
@given(
    st.integers(1, 10**6),
    st.sampled_from(["", "B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]),
    st.sampled_from(["", " "]),
    st.sampled_from([str.upper, str.lower, str]),
)
def test_sizes_are_read_as_written(number, unit, space, case):
    power = "KMGT".index(unit[0]) + 1 if unit and unit[0] in "KMGT" else 0
    expected = number * (1024 if "i" in unit else 1000) ** power
    assert parse_bytes(case(f"{number}{space}{unit}")) == expected


@examples
@given(st.text(max_size=12))
def test_any_other_text_is_refused_with_a_sentence(text):
    try:
        size = parse_bytes(text)
    except ResourceError as error:
        message = str(error)
    else:
        assert size > 0
        return
    assert repr(text) in message


@examples
@given(rows_of(), st.integers(1, 15), st.floats(0, 1e4))
def test_any_block_size_gives_the_same_components(rows, block, mean):
    rows = (rows + np.float32(mean)).astype(np.float32)
    n = len(rows)

    def read(start, stop):
        return rows[start:stop]

    whole, parts = gram_matrix(read, n, n), gram_matrix(read, n, block)
    # each product of float64 differences is exact to some ulps of its factors' rounding
    rounding = 1e-15 * max(1.0, np.abs(rows).max())
    spread = np.sqrt(np.trace(whole.matrix) + rounding**2) + rounding
    np.testing.assert_allclose(
        parts.matrix, whole.matrix, rtol=0, atol=1e-10 * spread**2 + rows.size * rounding**2
    )
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=0, atol=4 * rounding)
    fitted = fit_components(parts, read, block, n)
    rebuilt = fitted.mean + fitted.coordinates @ fitted.vectors
    scale = max(1.0, float(np.abs(rows).max()))
    np.testing.assert_allclose(rebuilt, rows, rtol=0, atol=1e-5 * spread + 1e-12 * scale)
    assert (np.diff(fitted.variance) <= 1e-12 * spread**2).all()


@examples
@given(rows_of(), st.integers(1, 15))
def test_isometric_coordinates_keep_distances(rows, block):
    gram = gram_matrix(lambda start, stop: rows[start:stop], len(rows), block)
    points = isometric_coordinates(gram.matrix.__matmul__, len(gram.matrix))
    exact = cdist(rows.astype(np.float64), rows.astype(np.float64))
    atol = 1e-6 * max(exact.max(), 1e-9)
    np.testing.assert_allclose(
        cdist(points, points) if points.size else 0 * exact, exact, atol=atol
    )


@examples
@given(rows_of(), st.sampled_from(LINKAGES), st.data())
def test_cuts_partition(rows, method, data):
    tree = link(cdist(rows, rows, "sqeuclidean"), method)
    n_states = data.draw(st.integers(1, len(rows)))
    labels = cut(tree, n_states)
    assert sorted(set(labels.tolist())) == list(range(n_states))
    first = [np.flatnonzero(labels == state)[0] for state in range(n_states)]
    assert first == sorted(first)
    if n_states < len(rows):
        finer = cut(tree, n_states + 1)
        assert len(set(zip(labels.tolist(), finer.tolist(), strict=True))) == n_states + 1


labels_and_occupancy = st.integers(1, 20).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.int32, n, elements=st.integers(0, 4)).map(
            lambda labels: np.unique(labels, return_inverse=True)[1].astype(np.int32)
        ),
        hnp.arrays(np.int64, n, elements=st.integers(1, 50)),
    )
)


@examples
@given(labels_and_occupancy)
def test_numbering_by_size_is_a_permutation(given_):
    labels, occupancy = given_
    numbered = number_by_size(labels, occupancy)
    pairs = set(zip(labels.tolist(), numbered.tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert {b for _, b in pairs} == set(range(len(pairs)))
    sizes = np.bincount(numbered, occupancy)
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(number_by_size(numbered, occupancy), numbered)


@examples
@given(labels_and_occupancy)
def test_medoids_are_members(given_):
    labels, occupancy = given_
    places = np.arange(len(labels))[:, None] ** 1.5
    chosen = medoids(labels, occupancy, [(0, len(places), cdist(places, places, "sqeuclidean"))])
    np.testing.assert_array_equal(labels[chosen], np.arange(labels.max() + 1))


@examples
@given(rows_of(bound=100), st.data())
def test_moments_are_those_of_repeated_items(rows, data):
    """An occupancy of w is the same as w copies."""
    weights = data.draw(hnp.arrays(np.int64, len(rows), elements=st.integers(1, 6)))
    size = data.draw(st.integers(1, len(rows)))
    blocks = [rows[start:stop] for start, stop in batches(len(rows), size)]
    mean, deviation = weighted_moments(blocks, weights.astype(np.float64))
    copies = np.repeat(rows, weights, axis=0).astype(np.float64)
    np.testing.assert_allclose(mean, copies.mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(deviation, copies.std(0), rtol=1e-4, atol=1e-4)


@examples
@given(
    hnp.arrays(np.int32, (5, 6, 7), elements=st.integers(0, 9)),
    st.floats(0, 1),
    st.floats(0.5, 10),
    st.floats(0, 12),
    st.floats(0, 12),
)
def test_masks_grow_with_every_option_that_lets_them(claims, fraction, pixel, dilate, edge):
    try:
        mask = mask_from_claims(claims, 9, pixel, dilate, edge, fraction)
    except InputError:
        assert not ((claims > 0) & (claims >= 9 * fraction * (1 - 1e-12))).any()
        return
    assert mask.min() >= 0
    assert mask.max() == 1
    assert (mask[(claims > 0) & (claims > 9 * fraction)] == 1).all()
    assert (mask_from_claims(claims, 9, pixel, dilate + pixel, edge, fraction) >= mask).all()
    assert (mask_from_claims(claims, 9, pixel, dilate, edge, fraction / 2) >= mask).all()


@examples
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(2, 40), st.integers(1, 3)),
               elements=st.integers(-4, 4)),
    st.sampled_from(METHODS),
    st.integers(0, 2**32),
    st.data(),
)  # fmt: skip
def test_any_sketch_stands_for_all_particles(latents, method, seed, data):
    """With many duplicates among the latents, which is what k-means finds hard."""
    n_excluded = data.draw(st.integers(0, len(latents) - 2))
    excluded = np.arange(len(latents))[:n_excluded] if n_excluded else None
    left = latents[n_excluded:]
    n_distinct = len(np.unique(left, axis=0))
    size = data.draw(st.integers(2, len(left)))
    if method == "kmeans" and size > n_distinct:
        with pytest.raises(InputError, match=f"{n_distinct} hold particles"):
            make_sketch(latents, size, method, seed, excluded)
        return
    sketch = make_sketch(latents, size, method, seed, excluded)
    assert len(np.unique(sketch.particle)) == size
    assert sketch.particle.min() >= n_excluded
    np.testing.assert_array_equal(sketch.assignment < 0, np.arange(len(latents)) < n_excluded)
    assert sketch.occupancy.sum() == len(left)
    np.testing.assert_array_equal(sketch.assignment[sketch.particle], np.arange(size))
    group, particle = quality_sample(sketch, 3, 2, seed)
    np.testing.assert_array_equal(sketch.assignment[particle], group)
    assert not np.isin(particle, sketch.particle).any()
    assert len(np.unique(particle)) == len(particle)
