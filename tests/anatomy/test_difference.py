"""When two tensors are apart: the allowed difference, from its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interpret.anatomy.difference import apart

OWN = torch.tensor([[1.0, 2.0, 4.0], [0.0, -3.0, 5.0]])
SPREAD = (OWN.double() - OWN.double().mean(-1, keepdim=True)).norm()
NAN, INF = float("nan"), float("inf")


def moved(by: float) -> torch.Tensor:
    """OWN with one entry changed, by a share of the norm of its differences from the mean of each row."""
    other = OWN.double().clone()
    other[1, 2] += by * SPREAD
    return other


@given(share=st.floats(0.01, 0.99), tolerance=st.sampled_from([1e-4, 1e-3]))
def test_a_difference_is_compared_with_the_spread_of_the_models_own(share, tolerance):
    own = OWN.double()
    assert apart(True, moved(share * tolerance), own, tolerance=tolerance) is None
    found = apart(True, moved(1.01 * tolerance), own, tolerance=tolerance)
    assert found == pytest.approx((5 + 1.01 * tolerance * float(SPREAD), 5.0))


def test_what_is_added_to_larger_numbers_is_compared_with_its_own_size():
    own, added = OWN.double(), torch.full((2, 3), 0.1, dtype=torch.float64)
    allowed = float(1e-3 * added.norm() + 1e-5 * own.norm()) / float(SPREAD)
    assert apart(True, moved(0.99 * allowed), own, size=added) is None
    assert apart(True, moved(1.01 * allowed), own, size=added) is not None


def test_low_precision_is_allowed_five_per_cent():
    own = OWN.double()
    assert apart(False, moved(0.049), own) is None
    assert apart(False, moved(0.051), own) is not None


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_numbers_that_are_not_finite_agree_only_with_themselves(value):
    own = OWN.clone()
    own[0, 1] = value
    ours = own + 1e-6  # not the same bits
    assert apart(True, ours, own) is None
    ours[0, 1] = 2.0
    ours_of_other, own_of_other = apart(True, ours, own)
    assert ours_of_other == 2.0
    assert own_of_other == value or value != value
