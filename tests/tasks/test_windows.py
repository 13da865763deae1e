"""Windows over a document: every word has one owner, and it sees most on both sides."""

from hf_efficient.tasks.windows import documents, first_pieces, owners


def test_the_owner_sees_most_on_both_sides() -> None:
    windows = [[None, 0, 1, 2, 3, None], [None, 2, 3, 4, 5, None], [None, 4, 5, 6, None]]
    assert owners(windows) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 2}


def test_a_word_cut_in_two_belongs_where_it_begins() -> None:
    assert owners([[None, 0, 1, None], [None, 1, 2, None]]) == {0: 0, 1: 0, 2: 1}


def test_one_window_owns_all() -> None:
    assert owners([[None, 0, 0, 1, None]]) == {0: 0, 1: 0}


def test_first_pieces() -> None:
    assert first_pieces([None, 0, 0, 1, None, None]) == [1, 3]
    assert first_pieces([4, 4, 5]) == [0, 2]


def test_documents() -> None:
    assert documents([7, 7, 8, 9, 9]) == [[0, 1], [2], [3, 4]]
    assert documents([]) == []
