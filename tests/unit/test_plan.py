"""The arithmetic of a run: batches, what fits, and what a refusal tells."""

import re
from dataclasses import replace

import pytest

from scapedist.errors import ResourceError
from scapedist.plan import (
    BATCH_VOLUMES,
    BLOCK_BYTES,
    GIB,
    GPU_IMPORT_BYTES,
    IMPORT_BYTES,
    TILE_BYTES,
    UNLIMITED,
    Budget,
    DecodePlan,
    batches,
    block_rows,
    check_disk,
    kept_bytes,
    parse_bytes,
    plan_components,
    plan_decode,
    plan_linkage,
    worker_bytes,
)

PAPER = {"n_volumes": 500, "box_size": 128, "n_slots": 549_000, "n_weights": 3_300_000}


def plan(**changes) -> DecodePlan:
    return plan_decode(**PAPER | {"cached_bytes": 0, "voxel_bytes": 4} | changes)


def test_batches():
    assert batches(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert batches(8, 4) == [(0, 4), (4, 8)]
    assert batches(3, 10) == [(0, 3)]
    assert batches(0, 4) == []


def test_without_a_limit_batches_have_the_usual_size():
    made = plan()
    assert made.batch_size == BATCH_VOLUMES["cpu"]
    assert made.n_batches == 63
    assert made.worker_bytes == worker_bytes(BATCH_VOLUMES["cpu"], 128, 549_000, 3_300_000, 0)
    assert plan(batch_size=100).batch_size == 100


def test_a_limit_makes_batches_smaller():
    need = worker_bytes(3, 128, 549_000, 3_300_000, 0)
    assert plan(budget=Budget(need)).batch_size == 3
    assert plan(budget=Budget(need - 1)).batch_size == 2


def test_disk_is_what_is_stored():
    whole = plan().disk_bytes
    assert whole == pytest.approx(500 * 128**3 * 4, rel=1e-5)
    assert plan(voxel_bytes=2).disk_bytes == pytest.approx(whole / 2, rel=1e-5)
    assert plan(n_voxels=162_210).disk_bytes == pytest.approx(500 * 162_210 * 4, rel=1e-4)


def test_a_batch_that_does_not_fit_names_one_that_does():
    need = worker_bytes(5, 128, 549_000, 3_300_000, 0)
    with pytest.raises(ResourceError, match=r"Decoding 64 volume\(s\) of 128\^3") as caught:
        plan(batch_size=64, budget=Budget(need))
    named = int(re.findall(r"--batch-size (\d+) or less", str(caught.value))[0])
    assert named == 5
    assert plan(batch_size=named, budget=Budget(need)).batch_size == 5


@pytest.mark.parametrize("n_weights", [1_000, 3_300_000, 20_000_000])
def test_a_limit_that_is_too_small_names_one_that_suffices(n_weights):
    with pytest.raises(ResourceError, match="Decoding 1 volume") as caught:
        plan(budget=Budget(100 * 2**20), n_weights=n_weights)
    named = parse_bytes(re.findall(r"--memory-limit (\S+) or more", str(caught.value))[0])
    made = plan(budget=Budget(named), n_weights=n_weights)
    assert made.batch_size == 1
    assert named < made.worker_bytes + 2**20  # and asks for no more than it must


def test_block_rows():
    assert block_rows(162_210) * 162_210 * 8 <= BLOCK_BYTES
    assert (block_rows(162_210) + 1) * 162_210 * 8 > BLOCK_BYTES
    assert block_rows(162_210, Budget(4 * GIB)) > block_rows(162_210, Budget(GIB)) > 1
    assert block_rows(10**9, Budget(2**20)) == 1  # one row at least
    assert block_rows(0) >= 1


def test_a_tile_of_the_gram_matrix_stays_small():
    """However few voxels there are: workers send tiles, and some wait to be put in place."""
    for device, n_bytes in TILE_BYTES.items():
        free = 0 if device == "cpu" else 80 * GIB
        for budget in (Budget(2**63, False, free), Budget(64 * GIB, True, free)):
            assert 0.99 * n_bytes < 8 * block_rows(10, budget) ** 2 <= n_bytes


def test_disk_is_checked():
    check_disk(10 * GIB, 10 * GIB, "runs")
    with pytest.raises(ResourceError, match=r"take 10 GiB, runs has 2\.5 GiB free"):
        check_disk(10 * GIB, int(2.5 * GIB), "runs")
    with pytest.raises(ResourceError, match=r"take 0\.00977 GiB, runs has 0\.00391 GiB free"):
        check_disk(10 * 2**20, 4 * 2**20, "runs")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 16 * 2**30),
        ("16 GiB", 16 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 gb", 1_500_000_000),
        ("2e9", 2_000_000_000),
        (" 7 ", 7),
        ("1TiB", 2**40),
        ("8B", 8),
        ("3KB", 3000),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "x", "-5GB", "0", "nan", "inf", "1e999", "5IB", "1.2.3GB", "0.4B", "5 apples"],
)
def test_no_sizes(text):
    with pytest.raises(ResourceError, match="a number with a unit"):
        parse_bytes(text)


def test_a_gpu_takes_more_at_a_time():
    made = plan_decode(500, 128, 549_000, 3_300_000, 0, 4, device="cuda")
    assert made.batch_size == BATCH_VOLUMES["cuda"]
    # host memory holds a volume at a time, not the batch
    assert made.worker_bytes == worker_bytes(1, 128, 549_000, 3_300_000, 0, "cuda")
    assert made.worker_bytes > GPU_IMPORT_BYTES


@pytest.mark.parametrize("host", [Budget(16 * GIB), UNLIMITED])
def test_a_gpu_holds_blocks_by_its_own_memory_whatever_the_host_s(host):
    card = replace(host, device_bytes=64 * GIB)
    assert kept_bytes(card) == 32 * GIB
    assert block_rows(162_210, card) > 10 * block_rows(162_210)
    # what a pass over 50,000 volumes of the paper's mask reads again is what does not fit
    assert 4 * 50_000 * 162_210 - kept_bytes(card) < 0.01 * kept_bytes(card)
    small = replace(host, device_bytes=4 * GIB)
    assert 8 * 162_210 * block_rows(162_210, small) <= 2 * GIB


def test_a_worker_with_a_gpu_is_never_this_process():
    limit = Budget(16 * GIB, True, 64 * GIB)
    plan = plan_components(5000, 160_000, 20, limit, n_workers=1)
    assert plan.worker_bytes > GPU_IMPORT_BYTES
    assert plan.here_bytes < IMPORT_BYTES + 2 * 8 * 5000**2 + 2 * GIB
    with pytest.raises(ResourceError, match="in one process"):
        plan_components(5000, 160_000, 20, Budget(2 * GIB, True, 64 * GIB), n_workers=8)


@pytest.mark.parametrize(
    ("n", "card", "kind"),
    [(50_000, 64, "distances"), (60_000, 20, "two-level"), (100_000, 64, "two-level")],
)
def test_linkage_on_a_gpu_goes_by_its_memory(n, card, kind):
    """The host's, of 16 GiB here, does not count: the matrix goes there some rows at a time."""
    plan = plan_linkage(n, "average", Budget(16 * GIB, True, card * GIB))
    assert plan.kind == kind
    assert plan.here_bytes <= card * GIB
    if kind == "distances":
        assert plan.here_bytes >= 8 * n * n
    with pytest.raises(ResourceError, match=r"GiB of a GPU's memory; it may use 0\.50 GiB.*--gpus"):
        plan_linkage(n, "average", Budget(64 * GIB, True, GIB // 2))
