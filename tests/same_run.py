"""Whether two runs hold the same, file by file, but for times, versions and the order of work.

    python tests/same_run.py BEFORE AFTER

prints what differs and what only one has; it exits with 1 where anything does. Records and pages
lose what says when, how fast, by how many workers and with which versions something was made; rows
that workers hand back in any order are sorted.

    python tests/same_run.py RUN

prints how a run is laid out: fingerprints, arrays and files, which another version must find as
they were.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np

VOLATILE = re.compile(r"seconds|per_second|finished|versions|^workers$")
TIMES = re.compile(rb"\d[\d.]*(e-?\d+)? ?(ms|s|min|h)\b|\d{4}-\d\d-\d\d[T ][\d:+]+(?:\d\d)?")
ROW = re.compile(
    rb"<tr>(?:(?!</tr>).)*(?:second|ms per particle|[.>]workers<)(?:(?!</tr>).)*</tr>", re.DOTALL
)
VERSION = re.compile(rb"(scapedist|numpy|scipy|torch|zarr|scikit-learn|distributed) [\d.]+[\w.+]*")


def without_times(value):
    """A record without what depends on when and with what it was made."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not VOLATILE.search(k)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(path):
    """What a file of a run says, as bytes that can be compared."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(without_times(json.loads(data))).encode()
    if path.suffix == ".html":
        return VERSION.sub(b"", TIMES.sub(b"", ROW.sub(b"", data)))
    if path.suffix == ".rows":
        header, _, rows = data.partition(b"\n")
        size = 8 + 4 * int(header.split()[1]) + 4
        table = np.frombuffer(rows[: len(rows) // size * size], np.dtype(("V", size)))
        return header + b"".join(sorted(row.tobytes() for row in table))
    return data


def digests(run):
    """SHA-256 of what each file of a run says, by its path in the run."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(Path(run).rglob("*"))
        if path.is_file()
    }


def differences(before, after):
    """A line for each file that differs or that only one of two runs has."""
    old, new = digests(before), digests(after)
    lines = [f"only in {before}: {name}" for name in old if name not in new]
    lines += [f"only in {after}: {name}" for name in new if name not in old]
    return lines + [f"differs: {name}" for name in old if name in new and old[name] != new[name]]


def layout(run):
    """How a run is laid out, as lines: its records, arrays (p voxels in the mask) and files."""
    root = Path(run) / "landscape.zarr"
    record = json.loads((root / "zarr.json").read_text())["attributes"]["scapedist"]
    lines = [f"record: {' '.join(sorted(record))}"]
    for name, entry in (record["stages"] | record["beside"]).items():
        lines.append(f"{name}: {entry['fingerprint']} {' '.join(sorted(entry['results']))}")
    n_voxels = json.loads((root / "components/mean/zarr.json").read_text())["shape"][0]
    for path in sorted(root.rglob("zarr.json")):
        meta = json.loads(path.read_text())
        if meta["node_type"] == "array":
            name = path.parent.relative_to(root).as_posix()
            chunks = meta["chunk_grid"]["configuration"]["chunk_shape"]
            if name.startswith("missed/"):  # as many as this machine's rounding finds
                chunks = []
            parts = [
                name,
                meta["data_type"],
                ",".join(meta["dimension_names"]),
                ",".join("p" if size == n_voxels else str(size) for size in chunks),
                repr(meta["chunk_key_encoding"]["configuration"]["separator"]),
                "+".join(codec["name"] for codec in meta["codecs"]),
                str(meta["fill_value"]),
                ",".join(meta["attributes"]),
            ]
            lines.append(" ".join(parts))
    files = (path.relative_to(run) for path in Path(run).rglob("*") if path.is_file())
    names = sorted(path.as_posix() for path in files if path.parts[0] != root.name)
    return lines + [name for name in names if not name.startswith("maps/missed/")]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print("\n".join(layout(sys.argv[1])))
        sys.exit()
    found = differences(*sys.argv[1:3])
    print("\n".join(found) or f"the same: {len(digests(sys.argv[1]))} files")
    sys.exit(bool(found))
