"""The store of a run: its Zarr group with records and journal, its arrays, files of rows."""

from scapedist.store.arrays import Reader, read_rows, write_row
from scapedist.store.row_file import RowFile
from scapedist.store.run_store import GROUP, Begin, Progress, RunStore, embeddings

__all__ = [
    "GROUP",
    "Begin",
    "Progress",
    "Reader",
    "RowFile",
    "RunStore",
    "embeddings",
    "read_rows",
    "write_row",
]
