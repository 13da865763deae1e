"""The table of single tags that goes with the entity table in reports on entity recognition."""

from collections.abc import Sequence

from sklearn.metrics import classification_report

from hf_efficient.functional.tags import OUTSIDE


def tag_report(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> str:
    """Precision, recall, F1 and support of each B- and I- tag that occurs; micro, macro and weighted means. O is left
    out, as nearly every word has it.

    Args:
        truth, found: tags of each text's words.
    """
    given, said = ([tag for row in rows for tag in row] for rows in (truth, found))
    labels = sorted({*given, *said} - {OUTSIDE}, key=lambda tag: (tag[2:], tag))
    if not labels:
        return "No text has an entity, and none was found.\n"
    return str(classification_report(given, said, labels=labels, digits=4, zero_division=0))
