"""The steps back to the constraints: what they do to singular values, and projections against a solver."""

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.models.parseval_retraction import parseval_retraction_, project_l1_ball, project_simplex

SHAPES = [(5, 5), (4, 11), (11, 4), (6, 2, 3, 3), (40, 2, 3, 3)]


def orthonormal(rows, columns, seed=0):
    draws = torch.Generator().manual_seed(seed)
    tall = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=draws).double()).Q
    return tall if rows >= columns else tall.T.contiguous()


def with_values(rows, columns, values, seed=0):
    """A matrix with these singular values."""
    n = min(rows, columns)
    left, right = orthonormal(rows, n, seed), orthonormal(columns, n, seed + 1)
    return left @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ right.T


def retracted(weight, *args, **kwargs):
    weight = weight.clone()
    parseval_retraction_([weight], *args, **kwargs)
    return weight


@settings(max_examples=20, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    beta=st.floats(1e-4, 0.5),
    seed=st.integers(0, 99),
)
def test_singular_values_and_vectors(sides, beta, seed):
    """s -> (1 + beta) s - beta s^3, with the vectors kept: the left and right factors go through."""
    values = torch.rand(min(sides), generator=torch.Generator().manual_seed(seed)).double() * 1.5
    weight = with_values(*sides, values, seed)
    expected = with_values(*sides, (1 + beta) * values - beta * values**3, seed)
    assert (retracted(weight, beta) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_a_gradient_step(shape):
    """Half of beta times the gradient of ||W^T W - I||^2 / 2, by autograd."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double().mul_(0.2).requires_grad_()
    matrix = weight.flatten(1)
    gap = matrix.T @ matrix - torch.eye(matrix.shape[1]).double()
    (gradient,) = torch.autograd.grad(gap.square().sum() / 4, weight)
    assert torch.allclose(retracted(weight.detach(), 0.3), weight.detach() - 0.3 * gradient, atol=1e-12)


@pytest.mark.parametrize("rows", [1.0, 0.4])
@pytest.mark.parametrize("sides", [(6, 6), (4, 9), (9, 4)])
def test_orthonormal_stays(sides, rows):
    weight = orthonormal(*sides)
    assert (retracted(weight, 0.5, rows) - weight).abs().max() < 1e-12


def test_rank_does_not_grow():
    weight = with_values(6, 9, [1.2, 0.7, 0.3, 0, 0, 0])
    for _ in range(12):
        parseval_retraction_([weight], 0.5)
    values = torch.linalg.svdvals(weight)
    # zeros of a float64 matrix, which grow by half a step
    assert (values[3:] < 1e-12).all()
    assert (values[:3] - 1).abs().max() < 1e-6


def test_commutes_with_orthogonal_factors():
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(3)).double() * 0.3
    left, right = orthonormal(5, 5, 4), orthonormal(8, 8, 5)
    assert torch.allclose(retracted(left @ weight @ right, 0.2), left @ retracted(weight, 0.2) @ right, atol=1e-12)


@pytest.mark.parametrize(("sides", "rows"), [((4, 9), 1.0), ((9, 4), 1.0), ((6, 40), 0.5), ((40, 6), 0.5)])
def test_repeated_it_converges(sides, rows):
    """Wide and tall, all rows and half of the shorter side's."""
    weight = with_values(*sides, torch.linspace(0.2, 1.2, min(sides)))
    for step in range(400):
        parseval_retraction_([weight], 0.5, rows, seed=step)
    assert (torch.linalg.svdvals(weight) - 1).abs().max() < 1e-6


def test_rows_are_sampled_along_the_shorter_side():
    """In a tall matrix whole columns change, in a wide one whole rows, as many as asked for."""
    draws = torch.Generator().manual_seed(0)
    for sides, side in (((12, 5), 1), ((5, 12), 0)):
        weight = torch.randn(sides, generator=draws).double()
        changed = retracted(weight, 0.1, 0.4) != weight
        assert changed.any(1 - side).sum() == 2
        assert changed.all(1 - side).sum() == 2


def test_the_sample_is_that_of_the_seed_and_differs_between_layers():
    draws = torch.Generator().manual_seed(0)
    stack = torch.randn(1, 10, 20, generator=draws).repeat(6, 1, 1)

    def sampled(seed):
        weights = list(stack.clone())
        parseval_retraction_(weights, 0.1, 0.3, seed)
        return [
            tuple(((after != before).any(1)).nonzero()[:, 0].tolist())
            for after, before in zip(weights, stack, strict=True)
        ]

    assert sampled(1) == sampled(1) != sampled(2)
    assert len(set(sampled(1))) > 1


def test_many_layers_are_each_by_itself():
    """Batched by size, transposed ones among them: each as if it were alone, whatever its memory format."""
    draws = torch.Generator().manual_seed(0)
    shapes = [(6, 2, 3, 3), (18, 6), (6, 18), (6, 2, 3, 3), (4, 4)]
    weights = [torch.randn(shape, generator=draws).double() * 0.3 for shape in shapes]
    weights[0] = weights[0].to(memory_format=torch.channels_last)
    alone = [retracted(weight, 0.2) for weight in weights]
    together = [weight.clone() for weight in weights]
    before = [weight.stride() for weight in together]
    parseval_retraction_(together, 0.2)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-14)
    assert [weight.stride() for weight in together] == before


def test_half_precision_moves_at_all():
    weight = with_values(4, 6, [0.5] * 4).bfloat16()
    for _ in range(10):
        parseval_retraction_([weight], 0.1)
    assert torch.linalg.svdvals(weight.float()).min() > 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0 and at most 0.5, got 0.0"),
        ({"beta": 0.6}, "beta must be above 0 and at most 0.5"),
        ({"rows": 0.0}, r"rows must be a share in \(0, 1\], got 0.0"),
        ({"rows": 30}, r"rows must be a share in \(0, 1\], got 30"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        parseval_retraction_([torch.eye(2)], **arguments)
    with pytest.raises(ValueError, match=r"weights must be floating-point tensors \(O, ...\)"):
        parseval_retraction_([torch.zeros(3)])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_simplex(values):
    point = project_simplex(torch.tensor(values, dtype=torch.float64))
    assert (point >= 0).all()
    assert point.sum() == pytest.approx(1, abs=1e-12)
    assert torch.allclose(project_simplex(point), point, atol=1e-12)


def solved(values, constraints_of):
    variable = cvxpy.Variable(len(values))
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(variable - values)), constraints_of(variable)).solve(
        solver=cvxpy.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
    )
    return torch.from_numpy(variable.value)


def test_projections_are_those_of_a_solver():
    draws = np.random.default_rng(0)
    rows = draws.normal(0, 1, (6, 5))
    simplex = torch.stack([solved(row, lambda a: [a >= 0, cvxpy.sum(a) == 1]) for row in rows])
    assert (project_simplex(torch.from_numpy(rows)) - simplex).abs().max() < 1e-6
    ball = torch.stack([solved(row, lambda a: [cvxpy.norm1(a) <= 1]) for row in rows])
    assert (project_l1_ball(torch.from_numpy(rows)) - ball).abs().max() < 1e-6


def test_simplex_by_hand():
    """Two branches: (t, 1 - t) stays where it is on the line, and the general case is the method's."""
    assert torch.allclose(project_simplex(torch.tensor([0.9, 0.6])), torch.tensor([0.65, 0.35]))
    on_it = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    assert torch.allclose(project_simplex(on_it), on_it, atol=1e-7)
    assert project_simplex(torch.tensor([1.4, -0.4])).tolist() == [1.0, 0.0]


def test_inside_the_l1_ball_nothing_moves():
    inside = torch.tensor([[0.3, -0.6], [0.0, 0.0]])
    assert torch.equal(project_l1_ball(inside), inside)
    assert torch.allclose(project_l1_ball(torch.tensor([[3.0, -1.0]])), torch.tensor([[1.0, 0.0]]))
