"""What columns of a data set hold."""

from datasets import Dataset

from hf_efficient.errors import DataError

TEXT = ("string", "large_string")
"""Types of columns that hold text."""

WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""Types of columns that hold whole numbers."""


def check_type(dataset: Dataset, column: str, allowed: tuple[str, ...], demand: str) -> None:
    """Refuse a column of another type than ``allowed``.

    Raises:
        DataError: ``demand``, the type given, and the columns there are.
    """
    feature = dataset.features[column]
    given = getattr(feature, "dtype", type(feature).__name__)
    if given not in allowed:
        raise DataError(f"{demand}, got {given}; name another column of {', '.join(dataset.column_names)}")


def check_list(dataset: Dataset, column: str, allowed: tuple[str, ...], demand: str) -> None:
    """Refuse a column that holds no lists, or lists of another type than ``allowed``.

    Raises:
        DataError: ``demand``, the type given, and the columns there are.
    """
    feature = dataset.features[column]
    inner = getattr(feature, "feature", None)
    given = getattr(inner, "dtype", None)
    if given not in allowed:
        shown = f"lists of {given}" if given else getattr(feature, "dtype", type(feature).__name__)
        raise DataError(f"{demand}, got {shown}; name another column of {', '.join(dataset.column_names)}")
