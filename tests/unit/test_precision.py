"""Precisions measured on a model's own volumes, and how a run keeps the one chosen."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from scapedist import open_model
from scapedist.errors import InputError, RunError
from scapedist.landscape import Run, analyze, open_workers
from scapedist.landscape.cost import cost_of_run
from scapedist.landscape.verify import verify
from scapedist.model import precision
from scapedist.model.field import Field
from scapedist.model.precision import (
    candidates,
    check_capability,
    error_in_coordinates,
    fastest,
    measure,
)
from scapedist.settings import GenerateSettings, by_stage
from scapedist.sources.open import decoded_by
from scapedist.stages import chosen_precision, write_volumes
from scapedist.stages import volumes as volumes_module
from scapedist.workers import Serial

BOX, N = 12, 30


@pytest.fixture(scope="module")
def model(small_workdir):
    return open_model(small_workdir, 19)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_error_is_that_of_the_principal_components(shift):
    """Against scikit-learn's; what all volumes share is no spread, and hides no error."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((9, 4)) @ rng.standard_normal((4, 300)) * 0.1 + 100
    found = exact + rng.standard_normal((9, 300)) * 1e-3 + shift
    pca = PCA(4).fit(exact)  # the volumes lie in four dimensions
    wanted = pca.transform(found) - pca.transform(exact)
    wanted = np.sqrt(np.square(wanted).sum() / np.square(pca.transform(exact)).sum())
    error = error_in_coordinates(torch.from_numpy(found), torch.from_numpy(exact))
    assert error == pytest.approx(wanted, rel=1e-6)


def test_volumes_without_spread_have_no_coordinates():
    exact = torch.ones((4, 50), dtype=torch.float64)
    assert error_in_coordinates(exact + 1e-3, exact) == math.inf


def test_the_error_of_fields_is_that_of_volumes(model):
    latents = model.latents[:8]
    measured = measure(model.decoder, latents, 16, "cpu")
    assert list(measured) == ["float32", "bfloat16"]
    exact = Field(model.decoder, dtype="float64").decode(latents, 16).numpy().reshape(8, -1)
    pca = PCA(7).fit(exact)
    spread = np.square(pca.transform(exact)).sum()
    for dtype, one in measured.items():
        found = Field(model.decoder, dtype=dtype).decode(latents, 16).double().numpy()
        wanted = pca.transform(found.reshape(8, -1)) - pca.transform(exact)
        wanted = np.sqrt(np.square(wanted).sum() / spread)
        # the transform drops the lattice's last planes and has the plane z = 0 once
        assert one["error"] == pytest.approx(wanted, rel=0.3)
        assert one["seconds_a_volume"] > 0
    assert measured["float32"]["error"] < 1e-5 < 1e-3 < measured["bfloat16"]["error"]


def test_some_points_measure_what_all_do(model, monkeypatch):
    every = measure(model.decoder, model.latents[:8], 16, "cpu")
    monkeypatch.setattr(precision, "MEASURED_POINTS", 300)
    some = measure(model.decoder, model.latents[:8], 16, "cpu")
    for dtype, one in every.items():
        assert some[dtype]["error"] == pytest.approx(one["error"], rel=0.3)


def of(error, seconds):
    return {"error": error, "seconds_a_volume": seconds}


def test_the_fastest_that_is_good_enough_is_chosen():
    measured = {
        "float32": of(1e-6, 8.0),
        "tf32": of(9e-4, 2.0),
        "float16x3": of(1e-6, 3.0),
        "bfloat16": of(4e-3, 1.0),
        "float16": of(None, 0.9),
    }
    assert fastest(measured, 1e-3) == "tf32"
    assert fastest(measured, 1e-4) == "float16x3"
    assert fastest(measured, 1e-2) == "bfloat16"
    assert fastest(measured, 1e-7) == "float32"
    assert fastest({"float32": of(None, 1.0)}, 1.0) == "float32"


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_a_card_that_imitates_a_precision_is_told(dtype):
    with pytest.raises(InputError, match=rf"{dtype} needs .* 8.0 .*\. V100 has 7\.0\. Use --dtype"):
        check_capability(dtype, (7, 0), "V100")
    check_capability(dtype, (8, 0), "A100")
    check_capability("float16", (7, 0), "V100")
    check_capability("float16x3", (7, 0), "V100")


def test_what_a_device_has_is_measured(device):
    found = candidates(device)
    assert found[0] == "float32"
    assert ("float16x3" in found) == (device != "cpu")


def test_a_precision_of_gpus_is_float32_elsewhere(model):
    """Particles of a run that GPUs made can be embedded without one."""
    settings = GenerateSettings(dtype="float16x3")
    assert decoded_by(model, settings, model.latents[:0]).dtype == "float32"
    assert decoded_by(model, settings, model.latents[:0], "cuda").dtype == "float16x3"


# A run


def begun(adk_workdir, place):
    return Run.create(adk_workdir, 14, place).sketch(size=N, quality_groups=2)


def not_again(*_):
    raise AssertionError("precisions are measured again")


def test_auto_is_measured_once_recorded_and_kept(adk_workdir, tmp_path, monkeypatch):
    run = begun(adk_workdir, tmp_path / "run").generate(box_size=BOX, dtype="auto")
    record = run.store.stages["generate"]
    found = record["results"]["precision"]
    assert set(found["candidates"]) == {"float32", "bfloat16"}
    assert found["dtype"] == fastest(found["candidates"], found["tolerance"])
    assert (found["device"], found["volumes"], found["tolerance"]) == ("cpu", 12, 1e-3)
    assert found["candidates"]["float32"]["error"] < 1e-5
    # far above the tolerance on this model, so that float32 is chosen on the CPU
    assert found["candidates"]["bfloat16"]["error"] > 1e-3
    assert record["results"]["dtype"] == record["settings"]["dtype"] == "float32"
    monkeypatch.setattr(precision, "measure", not_again)
    for same in ({"dtype": "auto"}, {}, {"dtype": "float32"}):
        again = Run(run.directory).generate(box_size=BOX, **same)
        assert again.store.stages["generate"] == record
    with pytest.raises(RunError, match="dtype 'float32', asked 'bfloat16'"):
        Run(run.directory).generate(box_size=BOX, dtype="bfloat16")
    # fingerprints are those of a run that asks for the same by name
    plain = begun(adk_workdir, tmp_path / "plain").generate(box_size=BOX)
    assert plain.store.stages["generate"]["fingerprint"] == record["fingerprint"]
    assert "precision" not in plain.store.stages["generate"]["results"]
    assert "dtype" not in plain.store.stages["generate"]["results"]


def test_auto_takes_a_tolerance(adk_workdir, tmp_path):
    run = begun(adk_workdir, tmp_path / "run").generate(box_size=BOX, dtype="auto:0.2")
    found = run.store.stages["generate"]["results"]["precision"]
    assert found["tolerance"] == 0.2
    assert found["candidates"]["bfloat16"]["error"] < 0.2
    assert found["dtype"] == fastest(found["candidates"], 0.2)
    assert run.store.stages["generate"]["settings"]["dtype"] == found["dtype"]


@pytest.mark.parametrize("wrong", ["auto:", "auto:x", "auto:0", "auto:1", "auto:nan", "automatic"])
def test_a_tolerance_is_a_fraction(wrong):
    with pytest.raises(InputError, match=r"or as auto:0\.01 with a tolerance"):
        GenerateSettings(dtype=wrong)


def as_if_fast(*_):
    return {"float32": of(1e-7, 8.0), "bfloat16": of(5e-4, 1.0)}


def test_a_run_that_was_stopped_goes_on_in_its_precision(adk_workdir, tmp_path, monkeypatch):
    """Stopped after some batches, then resumed with auto or nothing said, embedded and grown."""
    run = begun(adk_workdir, tmp_path / "run")
    monkeypatch.setattr(precision, "measure", as_if_fast)
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return write_volumes.write_batch(*arguments)

    monkeypatch.setattr(volumes_module, "write_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run.generate(box_size=BOX, dtype="auto", batch_size=8)
    monkeypatch.setattr(volumes_module, "write_batch", write_volumes.write_batch)
    monkeypatch.setattr(precision, "measure", not_again)
    kept = len(run.store.journal_lines()) - 1
    assert kept == 1
    resumed = Run(run.directory).generate(dtype="auto")
    record = resumed.store.stages["generate"]
    assert record["settings"]["dtype"] == record["results"]["dtype"] == "bfloat16"
    assert record["results"]["precision"]["candidates"] == as_if_fast()
    assert 1e-3 < record["results"]["relative_error_against_float32"] < 0.1
    assert resumed.generate().store.stages["generate"] == record
    resumed.mask().pca(components=3).states(states=3)
    embedder = resumed.embedder()
    assert embedder.projection.source.dtype == "bfloat16"
    assert verify(resumed, 2).sound


def test_one_measured_but_not_begun_may_be_another(adk_workdir, tmp_path, monkeypatch):
    """A choice that no volume was made with does not show in the record of other ones."""
    run = begun(adk_workdir, tmp_path / "run")
    monkeypatch.setattr(precision, "measure", as_if_fast)
    chosen_precision.settled(
        run.store, lambda: run.model, GenerateSettings(box_size=BOX), "auto", Serial(),
        run.progress,
    )  # fmt: skip
    assert run.store.source["precision"]["dtype"] == "bfloat16"
    run.generate(box_size=BOX)
    assert run.store.stages["generate"]["settings"]["dtype"] == "float32"
    assert "precision" not in run.store.stages["generate"]["results"]


def test_workers_measure_and_this_process_does_not(adk_workdir, tmp_path, monkeypatch):
    run = begun(adk_workdir, tmp_path / "run")
    monkeypatch.setattr(precision, "measure", not_again)  # of this process alone
    with open_workers(2) as workers:
        run.generate(workers, box_size=BOX, dtype="auto")
    found = run.store.stages["generate"]["results"]["precision"]
    assert set(found["candidates"]) == {"float32", "bfloat16"}


def test_without_a_sketch_that_is_said(adk_workdir, tmp_path):
    with pytest.raises(RunError, match="generate builds on sketch"):
        Run.create(adk_workdir, 14, tmp_path / "run").generate(dtype="auto")


def test_the_whole_job_and_its_plan_take_auto(adk_workdir, tmp_path):
    options = {"size": N, "box_size": BOX, "states": 3, "components": 3, "dtype": "auto"}
    analyze(adk_workdir, 14, tmp_path / "run", n_workers=1, embedding="none", **options)
    record = Run(tmp_path / "run").store.stages["generate"]
    assert record["results"]["dtype"] == record["settings"]["dtype"]
    chosen = by_stage(options)
    cost = cost_of_run(adk_workdir, 14, n_workers=1, chosen=chosen, embedding="none")
    assert cost.seconds_a_volume > 0
