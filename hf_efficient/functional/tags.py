"""Tags of entities: any of the usual schemes as BIO."""

from collections.abc import Sequence

OUTSIDE = "O"
_BEGINS, _GOES_ON = "BSU", "IEL"
_ENDS = "ESLU"


def split_tag(tag: str) -> tuple[str, str]:
    """("B", "person") of "B-person"; ("O", "") of "O".

    Raises:
        ValueError: not a tag of BIO, IOB1, IOBES or BILOU.
    """
    prefix, dash, kind = tag.partition("-")
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if not (dash and kind and prefix in set(_BEGINS + _GOES_ON)):
        raise ValueError(f"'{tag}' is no tag of BIO, IOB1, IOBES or BILOU, such as O, B-person or I-person")
    return prefix, kind


def to_bio(tags: Sequence[str]) -> list[str]:
    """Tags of one text as BIO (IOB2): each entity begins with B- and goes on with I-.

    What goes on with no beginning, as entities do in IOB1, begins one: the convention of the CoNLL-2000 evaluation.

    Raises:
        ValueError: a tag of no scheme known.
    """
    found, before = [], (OUTSIDE, "")
    for tag in tags:
        prefix, kind = split_tag(tag)
        if prefix == OUTSIDE:
            found.append(OUTSIDE)
        else:
            goes_on = prefix in _GOES_ON and before[1] == kind and before[0] not in _ENDS
            found.append(f"{'I' if goes_on else 'B'}-{kind}")
        before = (prefix, kind)
    return found
