"""The nearest pixel that may change against a search over all of them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.attacks.places import nearest_allowed

quick = settings(max_examples=25)


@quick
@given(seed=st.integers(0, 10**6), height=st.integers(1, 7), width=st.integers(1, 7))
def test_nearest_allowed_pixel(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(2, 1, height, width, generator=generator) < 0.3).double()
    nearest = nearest_allowed(mask)
    for row in range(2):
        allowed = mask[row, 0].nonzero().tolist()
        if not allowed:
            continue
        for i in range(height):
            for j in range(width):
                closest_row = min(abs(i - a) for a, _ in allowed)
                found = divmod(int(nearest[row, i * width + j]), width)
                assert list(found) in allowed
                assert abs(i - found[0]) == closest_row
                assert abs(j - found[1]) == min(abs(j - b) for a, b in allowed if a == found[0])


def test_where_all_may_change_it_is_the_pixel_itself():
    assert nearest_allowed(torch.ones(2, 1, 3, 5)).tolist() == [list(range(15))] * 2
