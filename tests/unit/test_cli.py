"""Options of the commands are those that the settings declare."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from scapedist import cli
from scapedist.settings import (
    BESIDE,
    STAGES,
    JobOptions,
    MaskSettings,
    StatesSettings,
    WorkerOptions,
    options_of,
)
from scapedist.store import RunStore

COMMANDS = get_command(cli.app).commands
DECLARED = [
    option
    for kind in [stage.settings for stage in (STAGES | BESIDE).values()]
    + [JobOptions, WorkerOptions]
    for option in options_of(kind).values()
    if option.flag
]
OF_ONE_COMMAND = {
    "decode": {"--latents", "--output", "--box-size"},  # any box, not that of a sketch
    "embed": {"--latents", "--output", "--grow-sketch"},
    "crosscheck": {"--sample", "--seed"},  # of the sample
    "verify": {"--sample"},
    "run": {"--output"},
    "demo": {"--output"},
    "sketch": {"--output"},
    "plan": {"--output"},
}
"""What is no setting: where results go, and what nothing else takes."""
NOT_OF_A_RUN = {
    "--all-particles": "decodes every particle several times: it is asked for by itself",
}


def options(command: str) -> dict[str, object]:
    """The options of a command, by their first flag."""
    params = COMMANDS[command].params
    return {p.opts[0]: p for p in params if p.param_type_name == "option" and p.name != "help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_come_from_the_declarations(command):
    texts = {(option.flag.partition("/")[0], option.help) for option in DECLARED}
    for flag, param in options(command).items():
        if flag not in OF_ONE_COMMAND.get(command, ()):
            assert (flag, param.help.partition(" [default")[0]) in texts, f"{command} {flag}"


@pytest.mark.parametrize("command", OF_ONE_COMMAND)
def test_what_only_one_command_takes_is_there(command):
    assert OF_ONE_COMMAND[command] <= set(options(command))


def test_a_run_takes_every_option_of_its_stages():
    declared = {
        option.flag.partition("/")[0]
        for stage in STAGES.values()
        for option in options_of(stage.settings).values()
    }
    assert declared - {""} - set(options("run")) == set(NOT_OF_A_RUN)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_given_is_none(command):
    """So that the setting of the last run stays."""
    for flag, param in options(command).items():
        if flag not in OF_ONE_COMMAND.get(command, ()):
            bare = param.is_flag and not param.secondary_opts
            assert param.default is (False if bare else None), flag


def test_values_come_by_the_names_of_settings(monkeypatch, tmp_path):
    found = {}

    def analyze(*where, **options):
        found.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("scapedist.landscape.analyze", analyze)
    given = ["--sketch-size", "7", "--no-flip", "--exclude-states", "3,7", "--workers", "2"]
    given += ["--memory-limit", "2KiB", "--embed", "none"]
    with pytest.raises(SystemExit):
        cli.app(["run", str(tmp_path), "3", "--output", str(tmp_path), *given])
    there = {name: found[name] for name in found if found[name] not in (None, False)}
    assert there == {
        "size": 7, "exclude_states": (3, 7), "n_workers": 2, "memory_limit": 2048,
        "embedding": "none", "progress": there["progress"], "on_workers": there["on_workers"],
    }  # fmt: skip
    assert found["flip"] is False
    assert found["invert"] is None


def test_states_that_are_no_numbers(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        cli.app(["pca", str(tmp_path), "--exclude-states", "3;7"])
    assert end.value.code == 2
    assert "states are numbers with commas, as 3,7; it is '3;7'" in capsys.readouterr().err


SMALL = ["--sketch-size", "12", "--box-size", "16", "--workers", "1"]
FEW = ["--states", "3", "--components", "4", "--embed", "none"]


def call(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        cli.app([str(each) for each in arguments])
    assert not end.value.code


def test_a_run_takes_the_solver(adk_workdir, tmp_path):
    there = ["run", adk_workdir, 14, "--output", tmp_path / "run", *SMALL, *FEW]
    call(*there, "--solver", "iteration")
    pca = RunStore(tmp_path / "run").stages["pca"]
    assert pca["settings"]["solver"] == pca["results"]["solver"] == "iteration"
    call(*there)  # an option that is not given stays as it is
    assert RunStore(tmp_path / "run").stages["pca"]["settings"]["solver"] == "iteration"


def test_generate_takes_the_options_of_a_masked_store(adk_workdir, tmp_path):
    rules = {"threshold": 0.5, "dilate": 8.0, "cosine_edge": 2.0, "min_fraction": 0.25}
    flags = options_of(MaskSettings)
    given = [part for name, value in rules.items() for part in (flags[name].flag, value)]
    masks = []
    for store in ("masked", "volumes"):
        run = tmp_path / store
        call("sketch", adk_workdir, 14, "--output", run, *SMALL[:2])
        generate = ["generate", run, *SMALL[2:], "--store", store]
        call(*generate, *(given if store == "masked" else []))
        call("mask", run, *(given if store == "volumes" else []))
        assert rules.items() <= RunStore(run).stages["mask"]["settings"].items()
        masks.append(RunStore(run).read("mask"))
    np.testing.assert_array_equal(*masks)


def test_a_plan_takes_what_changes_it():
    assert {option.flag for option in options_of(MaskSettings).values()} <= set(options("plan"))
    assert {"--pixel-size", "--invert", "--clip-negative", "--error-bars"} <= set(options("plan"))
    assert set(options("plan")) <= set(options("run"))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ver", ["verify"]),
        ("run --lin", ["--linkage"]),
        ("run --linkage ", list(options_of(StatesSettings)["linkage"].rule.choices)),
        ("generate --store m", ["masked"]),
        ("embed --method=", ["reduced", "exact", "mlp"]),
    ],
)
def test_a_shell_completes(typed, offered, monkeypatch, capsys):
    words = ["scapedist", *typed.split(" ")]
    monkeypatch.setenv("_SCAPEDIST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        cli.app([], prog_name="scapedist")
    assert capsys.readouterr().out.split() == offered


README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_has_options_as_they_are_declared():
    """Its table of what is asked for most: a flag with a value, and the default in words."""
    _, _, *rows = README.partition("What is asked for most")[2].split("\n\n")[1].splitlines()
    for row in rows:
        flag, value, default = re.match(r"\| `(--\S+) (\S+)` \| ([^|]+) \|", row).groups()
        assert options("run")[flag].help.endswith(f" [default: {default}]")
        assert value != default


def test_the_readme_names_no_option_that_is_none():
    flags = {flag for command in COMMANDS for flag in options(command)}
    others = {"--help", "--install-completion"}
    others |= {"--size", "--only", "--ind"}  # of benchmarks, of cryoDRGN
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= flags | others
