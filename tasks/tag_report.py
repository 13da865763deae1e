"""The tables that reports on entity recognition have: of types of entities, and of single tags."""

from collections.abc import Sequence

from seqeval.metrics import classification_report as seqeval_report
from sklearn.metrics import classification_report

from hf_efficient.functional.tags import OUTSIDE

NOTHING = "No text has an entity, and none was found.\n"


def entity_recalls(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Recall of each type of entity that ``truth`` has."""
    if not _any(truth, found):
        return {}
    report = seqeval_report(truth, found, output_dict=True, zero_division=0)
    return {name: float(row["recall"]) for name, row in report.items() if row["support"] and not name.endswith(" avg")}


def entity_report(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> str:
    """Precision, recall, F1 and support of each type of entity, as the CoNLL evaluation counts them; means as below."""
    return str(seqeval_report(truth, found, digits=4, zero_division=0)) if _any(truth, found) else NOTHING


def _any(*tags: Sequence[Sequence[str]]) -> bool:
    return any(tag != OUTSIDE for rows in tags for row in rows for tag in row)


def tag_report(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> str:
    """Precision, recall, F1 and support of each B- and I- tag that occurs; micro, macro and weighted means. O is left
    out, as nearly every word has it.

    Args:
        truth, found: tags of each text's words.
    """
    if not _any(truth, found):
        return NOTHING
    given, said = ([tag for row in rows for tag in row] for rows in (truth, found))
    labels = sorted({*given, *said} - {OUTSIDE}, key=lambda tag: (tag[2:], tag))
    return str(classification_report(given, said, labels=labels, digits=4, zero_division=0))
