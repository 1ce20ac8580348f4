"""Read Arrow streams from foreign files: whatever bytes they hold, the result is batches or an InputError.

Arrow maps a file without looking at it: offsets may point anywhere and text may be no UTF-8, and taking a value then
ends the process or gives another document's bytes. So a column is validated, in full, before anything is taken from it.
"""

from pathlib import Path

import pyarrow as pa

from nemo_longpo.errors import InputError

from .schema import OPTIONAL_COLUMNS

ADVICE = "copy it again, or rebuild the shards"


def map_stream(path: Path, schema: pa.Schema, records: int) -> list[pa.RecordBatch]:
    """Return the batches of a mapped stream, one record each, with their contents unread and unchecked.

    Raises:
        InputError: not a stream, of another schema, or of another number of records.
    """
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            if stream.schema != schema:
                raise InputError(f"{path} has other columns than shards of its schema version; {ADVICE}")
            batches = list(stream)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable Arrow stream ({_reason(error)}); {ADVICE}") from error
    if len(batches) != records:
        raise InputError(f"{path} holds {len(batches)} records, but the manifest says {records}; {ADVICE}")
    for position, batch in enumerate(batches):
        if batch.num_rows != 1:
            raise InputError(f"{path}, record {position}: {batch.num_rows} records stand in its place; {ADVICE}")
    return batches


def check_columns(batch: pa.RecordBatch, names: list[str], where: str) -> None:
    """Raises InputError naming a column if an offset leads out of its buffer, text is not UTF-8 or a value is null."""
    for name in names:
        column = batch.column(name)
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise InputError(f"{where}: column {name!r} is damaged ({_reason(error)}); {ADVICE}") from error
        if len(column) != 1 or (_holds_null(column) and not (name in OPTIONAL_COLUMNS and column.null_count)):
            raise InputError(f"{where}: column {name!r} lacks a value; {ADVICE}")


def _holds_null(array: pa.Array) -> bool:
    is_list = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    parts = [array.flatten()] if is_list else array.flatten() if pa.types.is_struct(array.type) else []
    return array.null_count > 0 or any(map(_holds_null, parts))


def _reason(error: Exception) -> str:
    """Return Arrow's message, which can run over several lines, in one."""
    return " ".join(ascii(str(error)).strip("'\"").split("\\n")[0].split())[:200]
