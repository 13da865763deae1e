import pytest

from hf_efficient.functional.tags import split_tag, to_bio

BIO = ["B-per", "I-per", "O", "B-org", "B-org", "I-org", "I-org", "B-per"]
SCHEMES = {
    "BIO": BIO,
    "IOB1": ["I-per", "I-per", "O", "I-org", "B-org", "I-org", "I-org", "I-per"],
    "IOBES": ["B-per", "E-per", "O", "S-org", "B-org", "I-org", "E-org", "S-per"],
    "BILOU": ["B-per", "L-per", "O", "U-org", "B-org", "I-org", "L-org", "U-per"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_becomes_bio(scheme: str) -> None:
    assert to_bio(SCHEMES[scheme]) == BIO


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["O", "I-a"], ["O", "B-a"]),
        (["B-a", "I-b"], ["B-a", "B-b"]),
        (["S-a", "I-a"], ["B-a", "B-a"]),
        (["E-a", "E-a"], ["B-a", "B-a"]),
        ([], []),
    ],
)
def test_what_has_no_beginning_begins(tags: list[str], expected: list[str]) -> None:
    assert to_bio(tags) == expected


@pytest.mark.parametrize("tag", ["person", "X-person", "B-", "B", "", "b-person", "-person"])
def test_no_tag(tag: str) -> None:
    with pytest.raises(ValueError, match=r"is no tag of BIO, IOB1, IOBES or BILOU"):
        split_tag(tag)


def test_types_may_hold_dashes() -> None:
    assert split_tag("B-chemical-element") == ("B", "chemical-element")
