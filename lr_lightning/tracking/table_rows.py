"""Every row of many metrics at once, straight from the tables of a database store."""

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lr_lightning.tracking.store import Store, explain

if TYPE_CHECKING:
    from lr_lightning.tracking.runs import Run

Rows = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]


class TablesDiffer(Exception):
    """The tables are not those of the MLflow this was written for."""


def read_rows(store: Store, runs: Sequence["Run"], keys: Sequence[str]) -> Iterator[tuple["Run", str, Rows]]:
    """Read the rows of each metric that a run has.

    Args:
        store: A database store; it is opened for reading alone.
        runs: Whose rows.
        keys: Of which metrics.

    Yields:
        Run, metric, and step, value (nan where it is) and time of its rows.

    Raises:
        TablesDiffer: There is no such table or column.
        StoreUnavailable: The database does not answer.
    """
    import sqlalchemy as sql

    c = sql.table("metrics", *map(sql.column, ("run_uuid", "key", "step", "value", "timestamp", "is_nan"))).c
    # The order makes SQLite choose the right one of its indices: 30 times faster than without.
    query = (
        sql.select(c.step, c.value, c.timestamp, c.is_nan)
        .where(c.run_uuid == sql.bindparam("run"), c.key == sql.bindparam("key"))
        .order_by(c.step)
    )
    engine = sql.create_engine(store.uri)
    collecting = gc.isenabled()
    gc.disable()  # millions of rows become tuples and go at once; looking for cycles in them takes twice the time
    try:
        with engine.connect() as connection:
            for run in runs:
                for key in keys:
                    if key not in run.last:
                        continue
                    rows = connection.execute(query, {"run": run.id, "key": key}).all()
                    if rows:
                        step, value, time, is_nan = zip(*rows, strict=True)
                        values = np.array(value, np.float64)
                        values[np.array(is_nan, bool)] = np.nan
                        yield run, key, (np.array(step, np.int64), values, np.array(time, np.int64))
    except (sql.exc.ProgrammingError, sql.exc.OperationalError) as error:
        if "no such" in str(error) or "does not exist" in str(error) or "nknown column" in str(error):
            raise TablesDiffer(str(error)) from None
        raise explain(error, store.uri) from None
    except sql.exc.SQLAlchemyError as error:
        raise explain(error, store.uri) from None
    finally:
        if collecting:
            gc.enable()
        engine.dispose()
