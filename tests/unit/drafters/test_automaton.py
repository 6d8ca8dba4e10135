from hypothesis import example, given
from hypothesis import strategies as st

from outpace.drafters.automaton import SuffixAutomaton

texts = st.lists(st.lists(st.integers(0, 2), max_size=14), max_size=4)


def build(texts):
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.begin()
        for token in text:
            automaton.extend(token)
    return automaton


def pieces(text):
    return {tuple(text[a:b]) for a in range(len(text)) for b in range(a + 1, len(text) + 1)}


def occurrences(piece, texts):
    return sum(tuple(t[a : a + len(piece)]) == piece for t in texts for a in range(len(t) - len(piece) + 1))


@given(texts)
@example([[0, 1], [0, 1, 0], [1, 0, 1]])
def test_it_knows_every_piece_of_every_text_and_nothing_else(texts):
    automaton = build(texts)
    spelled: dict[tuple[int, ...], int] = {}
    frontier: list[tuple[tuple[int, ...], int]] = [((), 0)]
    while frontier:
        path, state = frontier.pop()
        for token, following in automaton.next[state].items():
            spelled[(*path, token)] = following
            frontier.append(((*path, token), following))
    assert set(spelled) == set().union(*map(pieces, texts))
    for path, state in spelled.items():
        assert automaton.length[automaton.link[state]] < len(path) <= automaton.length[state]


@given(texts)
def test_a_states_count_is_the_number_of_places_where_its_strings_end(texts):
    automaton = build(texts)
    for piece in set().union(*map(pieces, texts)):
        state, length = automaton.longest_match(piece)
        assert length == len(piece)
        assert automaton.count[state] == occurrences(piece, texts)


@given(texts, st.lists(st.integers(0, 3), max_size=12))
def test_the_longest_match_is_the_longest_suffix_that_stands_in_a_text(texts, query):
    known = set().union(*map(pieces, texts))
    expected = max((n for n in range(1, len(query) + 1) if tuple(query[-n:]) in known), default=0)
    automaton = build(texts)
    state, length = automaton.longest_match(query)
    assert length == expected
    assert automaton.length[automaton.link[state]] < length <= automaton.length[state] or length == state == 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_its_size_is_linear_in_the_text(text):
    automaton = build([text])
    assert len(automaton.next) <= 2 * len(text)
    assert sum(map(len, automaton.next)) <= 3 * len(text)
    assert automaton.num_appended == len(text)


def test_a_text_that_is_known_takes_no_memory():
    once, twice = build([[1, 2, 3, 1, 2]]), build([[1, 2, 3, 1, 2]] * 2)
    assert twice.num_appended == once.num_appended == 5
    assert len(twice.next) == len(once.next)
    assert twice.count[twice.longest_match([1, 2])[0]] == 4


def test_a_token_repeated_at_once_is_counted_in_bounded_time():
    automaton = build([[7] * 200])
    counts = [automaton.count[automaton.longest_match([7] * length)[0]] for length in (1, 150, 200)]
    assert counts == [32, 32, 1]  # the longest 32 classes of every position; exact would be 200, 51, 1
