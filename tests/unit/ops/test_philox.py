import numpy as np
import pytest

from outpace.ops.philox import gumbel, philox4x32, uniform

ONES = 0xFFFFFFFF


# The known answers of Random123, the authors' own implementation (kat_vectors, philox4x32 10).
@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (ONES << 32 | ONES, (ONES, ONES, ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0 << 32 | 0xA4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_ten_rounds_give_the_published_words(
    key: int, counter: tuple[int, int, int, int], expected: tuple[int, int, int, int]
) -> None:
    first, second, third, fourth = counter
    words = philox4x32(key, (first, np.array([second], np.uint64), third, fourth))
    assert words.dtype == np.uint32
    assert words[0].tolist() == list(expected)


def test_a_token_takes_its_lane_of_its_word() -> None:
    u = uniform(0, 0, 6, 0, 0)
    first = philox4x32(0, (0, np.array([0, 1], np.uint64), 0, 0)).reshape(-1)
    assert u.tolist() == ((first[:6].astype(np.float64) + 0.5) / 2**32).tolist()


def test_the_number_of_tokens_does_not_change_a_token_s_number() -> None:
    assert uniform(5, 6, 1000, 7, 1)[:13].tolist() == uniform(5, 6, 13, 7, 1).tolist()


def test_noise_is_finite_at_both_ends() -> None:
    ends = np.array([0.5 * 2.0**-32, 1 - 0.5 * 2.0**-32])
    noise = -np.log(-np.log(ends))
    assert np.isfinite(noise).all()
    assert gumbel(1, 2, 100_000, 3, 0).dtype == np.float32
    assert noise[0] < gumbel(1, 2, 100_000, 3, 0).min() < gumbel(1, 2, 100_000, 3, 0).max() < noise[1]


# For the other implementations: u, then noise, of tokens 0-4 at (seed, position, sample index, stream).
def test_these_numbers_never_change() -> None:
    assert [f"{x:.12f}" for x in uniform(0x123456789ABCDEF0, 1000, 5, 3, 2)] == EXPECTED_UNIFORM
    np.testing.assert_array_equal(gumbel(0x123456789ABCDEF0, 1000, 5, 3, 2), np.array(EXPECTED_NOISE, np.float32))


EXPECTED_UNIFORM = ["0.721088040504", "0.720093940268", "0.389868065831", "0.363578528981", "0.996251836070"]
EXPECTED_NOISE = [1.1178133, 1.1136032, 0.059806388, -0.011691359, 5.5846124]
