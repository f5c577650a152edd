"""Options of the commands become settings of the stages, and settings survive a record."""

import dataclasses
import json

import pytest

from scapedist.errors import InputError
from scapedist.settings import (
    BESIDE,
    STAGES,
    GenerateSettings,
    MaskSettings,
    PcaSettings,
    SketchSettings,
    by_stage,
    changed,
    from_record,
    writer_of,
)


def test_what_is_not_given_stays():
    before = MaskSettings(dilate=7.5, threshold=0.3)
    after = changed(before, {"dilate": None, "min_fraction": 0.1, "threshold": None})
    assert after == MaskSettings(dilate=7.5, threshold=0.3, min_fraction=0.1)
    assert before.min_fraction == 0


def test_false_and_zero_are_given():
    assert not changed(GenerateSettings(flip=True), {"flip": False}).flip
    assert changed(MaskSettings(), {"dilate": 0.0}).dilate == 0


def test_an_unknown_setting_is_named():
    with pytest.raises(InputError, match=r"no setting 'colour'\. SketchSettings has .*method"):
        changed(SketchSettings(), {"size": 3, "colour": "red"})


@pytest.mark.parametrize("stage", STAGES)
def test_a_record_gives_the_settings_back(stage):
    kind = STAGES[stage].settings
    settings = kind()
    if stage == "pca":
        settings = PcaSettings(components=3, exclude_states=(1, 4))
    record = json.loads(json.dumps({"settings": dataclasses.asdict(settings)}))
    assert from_record(kind, record) == settings
    assert hash(from_record(kind, record)) == hash(settings)  # lists became tuples again


def test_without_a_record_defaults():
    assert from_record(SketchSettings, None) == SketchSettings()


def test_a_setting_of_another_version_is_left_out():
    assert from_record(SketchSettings, {"settings": {"size": 7, "gone": 1}}).size == 7


def test_options_find_their_stages():
    chosen = by_stage({"seed": 3, "mask": "a.mrc", "components": 4, "linkage": None})
    assert chosen["sketch"] == {"seed": 3}
    assert chosen["states"] == {"seed": 3, "linkage": None}
    assert chosen["mask"] == {"mask": "a.mrc"}
    assert chosen["pca"] == {"components": 4}
    assert chosen["generate"] == chosen["report"] == {}


def test_an_option_of_no_stage_is_named():
    with pytest.raises(InputError, match="No stage has the setting 'colour'"):
        by_stage({"colour": "red", "size": 3})


def test_stages_come_one_after_the_other():
    before = ""
    for name, stage in STAGES.items():
        assert stage.name == name
        assert stage.after == before
        before = name
    assert {stage.after for stage in BESIDE.values()} <= set(STAGES)


@pytest.mark.parametrize(
    ("array", "writer"),
    [
        ("sketch/particle", "sketch"),
        ("sketch/quality/group", "sketch"),
        ("sketch/quality/distance", "mask"),
        ("sketch/coordinates", "pca"),
        ("volumes/0", "generate"),
        ("mask_claims", "mask"),
        ("components/vectors", "pca"),
        ("states/label", "states"),
        ("embedding/exact/residual", "embedding"),
        ("axes/mean", "missed"),
        ("particles/state", "particles"),
    ],
)
def test_who_writes_an_array(array, writer):
    assert writer_of(array).name == writer


def test_the_latents_are_written_with_the_run():
    assert writer_of("latents") is None
