"""Options of the commands become settings of the stages, and settings survive a record."""

import dataclasses
import inspect
import json
import math

import pytest

from scapedist.analysis.linkage import LINKAGES
from scapedist.analysis.sketch import METHODS
from scapedist.errors import InputError
from scapedist.model.decoder import DTYPES
from scapedist.settings import (
    BESIDE,
    STAGES,
    EmbedSettings,
    GenerateSettings,
    JobOptions,
    MaskSettings,
    PcaSettings,
    Settings,
    SketchSettings,
    StatesSettings,
    WorkerOptions,
    by_stage,
    changed,
    from_record,
    options_of,
    writer_of,
)
from scapedist.workers import open_workers

STAGE_KINDS = [stage.settings for stage in (STAGES | BESIDE).values()]
KINDS = [*dict.fromkeys(STAGE_KINDS), JobOptions, WorkerOptions]


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
    chosen = kind()
    if stage == "pca":
        chosen = PcaSettings(components=3, exclude_states=(1, 4))
    record = json.loads(json.dumps({"settings": dataclasses.asdict(chosen)}))
    assert from_record(kind, record) == chosen
    assert hash(from_record(kind, record)) == hash(chosen)  # lists became tuples again


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


# -- what is declared


def test_these_are_all_kinds():
    assert set(KINDS) == set(Settings.__subclasses__())


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_declares_its_option_once(kind):
    for name, option in options_of(kind).items():
        assert option.help.endswith("."), name
        assert "default" not in option.help, f"{name}: the default is declared beside the help"
        assert option.flag == "" or option.flag.startswith("--")
        for word in option.rule.choices if option.rule else ():
            assert word in option.help, f"{name}: the help leaves out {word}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_default_keeps_its_rule(kind):
    for option in options_of(kind).values():
        option.check(option.default)


def test_what_an_option_declares():
    size, method = (options_of(SketchSettings)[name] for name in ("size", "method"))
    assert (size.flag, size.shown, size.kind) == ("--sketch-size", "500", int)
    assert method.rule.choices == METHODS
    mask = options_of(MaskSettings)
    assert (mask["cosine_edge"].flag, mask["cosine_edge"].shown) == ("--cosine-edge", "0")
    assert mask["mask"].shown == "made from the volumes"
    flip = options_of(GenerateSettings)["flip"]
    assert (flip.flag, flip.shown) == ("--flip/--no-flip", "no-flip")
    bare = options_of(EmbedSettings)["error_bars"]
    assert (bare.flag, bare.shown) == ("--error-bars", "")
    assert options_of(EmbedSettings)["tolerance"].shown == "0.001"


def test_choices_are_those_of_the_mathematics():
    assert options_of(SketchSettings)["method"].rule.choices == METHODS
    assert options_of(GenerateSettings)["dtype"].rule.choices == ("auto", *DTYPES)
    assert options_of(StatesSettings)["linkage"].rule.choices == (*LINKAGES, "kmeans", "hdbscan")


def test_options_of_workers_are_what_opens_them():
    taken = set(inspect.signature(open_workers).parameters) - {"preloaded"}  # said by the code
    assert set(options_of(WorkerOptions)) == taken


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (SketchSettings, {"size": 1}, "2 volumes or more. --sketch-size is 1. Use 2 or more."),
        (SketchSettings, {"quality_groups": -1}, "from 0. quality_groups is -1. Use 0 or more."),
        (GenerateSettings, {"pilot_volumes": 0}, "--pilot-volumes is 0. Use 1 or more."),
        (GenerateSettings, {"dtype": None}, "with a tolerance. It is None. Choose one."),
        (GenerateSettings, {"pixel_size": math.nan}, "0 Å. It is nan. Give another"),
        (MaskSettings, {"threshold": math.inf}, "is a density. It is inf. Give a number."),
        (StatesSettings, {"linkage": "x"}, "kmeans, hdbscan. It is 'x'. Choose one."),
    ],
)
def test_a_broken_rule_is_told_with_the_value(kind, given, told):
    with pytest.raises(InputError) as caught:
        kind(**given)
    assert told in str(caught.value)
