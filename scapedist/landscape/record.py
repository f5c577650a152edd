"""A run's bookkeeping: its store, its model, and which stages are up to date."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from scapedist.errors import InputError, RunError
from scapedist.files.aside import disk_errors
from scapedist.model.workdir import Model, open_model, sha256_of
from scapedist.settings import (
    STAGES,
    GenerateSettings,
    SketchSettings,
    changed,
    from_record,
    options_of,
)
from scapedist.stages.chosen_precision import settled
from scapedist.store import Begin, Progress, RunStore
from scapedist.workers import Workers

Body = Callable[[Begin], dict[str, Any]]
"""Function that makes something of a run and returns its record; it calls its argument before it
writes."""
_VERSIONS = ("scapedist", "numpy", "scipy", "torch", "zarr", "scikit-learn", "distributed")


class Recorded:
    """Base of Run: its store, its model, and which stages are current."""

    def __init__(self, directory: str | Path, progress: Progress | None = None) -> None:
        self.directory = Path(directory)
        self.store = RunStore(self.directory, "r+")
        _ = self.store.source  # a run that was made to its end
        self.progress: Progress = progress or (lambda what, done, total: None)
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The run's model, checked to be the one that the run was made from."""
        if self._model is None:
            source = self.store.source
            model = open_model(source["workdir"], source["epoch"], check_weights=False)
            hashes = model.file_hashes()
            for name, digest in source["hashes"].items():
                if hashes.get(name) != digest:
                    raise RunError(
                        f"A run stays with its model. {model.files.get(name, name)} changed since "
                        f"{self.directory} was made. Restore it, or start again in another "
                        "--output."
                    )
            self._model = model
        return self._model

    def _settings(self, stage: str, options: dict[str, Any]) -> Any:
        """A stage's last settings, or the defaults, with the options given."""
        kind = STAGES[stage].settings
        for name, declared in options_of(kind).items():  # type: ignore[arg-type]
            if declared.kind is Path and options.get(name):
                options[name] = str(Path(options[name]).resolve())
        return changed(from_record(kind, self.store.last_settings(stage)), options)

    def _settled(self, options: dict[str, Any], workers: Workers) -> GenerateSettings:
        """Settings of the volumes with the options given, and a precision by its name."""
        settings, asked = self._settings("generate", options), options.get("dtype")
        return settled(self.store, lambda: self.model, settings, asked, workers, self.progress)

    def _fingerprint(self, stage: str, settings: Any, inputs: dict[str, Any]) -> str:
        """Fingerprint of all that a stage's results depend on."""
        after = STAGES[stage].after
        upstream = self.store.source["hashes"]
        if after:
            record = self.store.stages.get(after)
            if record is None:
                place = "" if STAGES[after].after else "WORKDIR EPOCH --output "
                raise RunError(
                    f"{stage} builds on {after}, which is not complete in {self.directory}. Give "
                    f"`scapedist {after} {place}{self.directory}` first."
                )
            upstream = record["fingerprint"]
        text = json.dumps([stage, dataclasses.asdict(settings), inputs, upstream], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _stage(
        self,
        stage: str,
        settings: Any,
        inputs: dict[str, Any],
        body: Body,
    ) -> None:
        """Do a stage, unless its record says that it is done with these settings and inputs.

        ``body`` gets a function to call before its first write, which withdraws the records of
        the stage and of those after it.
        """
        with self.store.lock():
            fingerprint = self._fingerprint(stage, settings, inputs)
            done = self.store.stages.get(stage)
            if done is not None and done["fingerprint"] == fingerprint:
                return
            if STAGES[stage].dear:
                self._check_replaceable(stage, settings, fingerprint)
            self.progress(stage, 0, 0)
            started = time.perf_counter()
            chosen = dataclasses.asdict(settings)
            with disk_errors(self.directory):
                results = body(lambda: self.store.begin_stage(stage, chosen))
                self.store.finish_stage(stage, _entry(chosen, fingerprint, started, results))

    def _check_replaceable(self, stage: str, settings: Any, fingerprint: str) -> None:
        """Refuse to replace stored volumes, which are dear, by those of other settings."""
        journal = self.store.journal_fingerprint
        has_volumes = "generate" in self.store.stages or journal is not None
        held = journal if stage == "generate" else None
        if stage in self.store.stages:
            held = self.store.stages[stage]["fingerprint"]
        if not has_volumes or held in (None, fingerprint) or _is_grown(stage, settings, self.store):
            return
        last = (self.store.last_settings(stage) or {"settings": {}})["settings"]
        asked = json.loads(json.dumps(dataclasses.asdict(settings)))  # as a record has them
        different = [
            f"{name} {value!r}, asked {asked.get(name)!r}"
            for name, value in last.items()
            if asked.get(name) != value
        ]
        raise RunError(
            f"{self.directory} holds volumes of other settings: "
            f"{', '.join(different) or 'a file that they were made with, or its mask, changed'}. "
            "Choose another --output, or --overwrite."
        )

    def _beside(
        self,
        name: str,
        settings: Any,
        fingerprint: str,
        body: Body,
    ) -> None:
        """Make a result beside the stages, unless its record says that it is done."""
        held = self.store.beside.get(name)
        if held is not None and held["fingerprint"] == fingerprint:
            return
        started = time.perf_counter()
        results = body(lambda: self.store.withdraw(name))
        self.store.withdraw(name)
        if "report" in self.store.stages:  # it shows none of this
            last = self.store.last_settings("report") or {"settings": {}}
            self.store.begin_stage("report", last["settings"])
        chosen = dataclasses.asdict(settings)
        self.store.finish_beside(name, _entry(chosen, fingerprint, started, results))


def _entry(
    settings: dict[str, Any], fingerprint: str, started: float, results: dict[str, Any]
) -> dict[str, Any]:
    """The record of a complete result that was begun at a time of the performance counter."""
    return {
        "settings": settings,
        "fingerprint": fingerprint,
        "versions": {name: _version(name) for name in _VERSIONS},
        "seconds": round(time.perf_counter() - started, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": results,
    }


def _is_grown(stage: str, settings: Any, store: RunStore) -> bool:
    """Whether a stage's settings are the recorded sketch's with more particles added."""
    if stage != "sketch" or stage not in store.stages:
        return False
    held = from_record(SketchSettings, store.stages[stage])
    if len(settings.added) <= len(held.added) or settings.added[: len(held.added)] != held.added:
        return False
    return bool(dataclasses.replace(settings, added=held.added) == held)


def hash_file(path: str | None) -> str:
    """SHA-256 of a file that settings name; empty where they name none."""
    if path is None:
        return ""
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Give its path.") from None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
