"""What columns of a data set hold."""

from datasets import Dataset

from hf_efficient.errors import DataError

TEXT = ("string", "large_string")
"""Types of columns that hold text."""


def check_type(dataset: Dataset, column: str, allowed: tuple[str, ...], demand: str) -> None:
    """Refuse a column of another type than ``allowed``.

    Raises:
        DataError: ``demand``, the type given, and the columns there are.
    """
    feature = dataset.features[column]
    given = getattr(feature, "dtype", type(feature).__name__)
    if given not in allowed:
        raise DataError(f"{demand}, got {given}; name another column of {', '.join(dataset.column_names)}")
