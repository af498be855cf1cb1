"""The heads for victim and budget."""

import pytest
import torch

from lit_adv.models import AttackRecognizer, AttributionHeads


def test_the_budget_is_that_of_the_recognised_attack():
    heads = AttributionHeads(8, 4, 3, budget=True)
    heads.set_budgets(torch.tensor([[torch.nan, torch.nan], [2, 4], [torch.nan, torch.nan], [6, torch.nan]]))
    features, attack = torch.randn(5, 8), torch.tensor([1, 3, 1, 0, 2])
    said = heads(features, attack)
    assert said.victim.shape == (5, 3)
    assert torch.equal(said.victim, heads.victim(features))
    outputs = heads.budget(features)
    expected = outputs[torch.arange(5), attack] + 4  # the mean of 2, 4 and 6
    torch.testing.assert_close(said.budget[:3], expected[:3])
    assert said.budget[3:].isnan().all()  # clean, and an attack without a radius
    said.budget[:3].sum().backward()
    assert all(p.grad.isfinite().all() for p in heads.budget.parameters())
    assert not heads.budget[-1].weight.grad[[0, 2]].any()


def test_what_the_budgets_are_like_is_kept():
    heads, other = (AttributionHeads(8, 2, budget=True) for _ in range(2))
    heads.set_budgets(torch.tensor([[torch.nan], [5.5]]))
    other.load_state_dict(heads.state_dict())
    features = torch.randn(3, 8)
    assert torch.equal(other(features, torch.ones(3).long()).budget, heads(features, torch.ones(3).long()).budget)
    assert other(features, torch.zeros(3).long()).budget.isnan().all()
    assert other.victim is None
    assert other(features, torch.zeros(3).long()).victim is None


@pytest.mark.parametrize(("victims", "budget", "count"), [(3, True, 3), (2, False, 2), (0, True, 2)])
def test_a_variance_for_the_attack_and_each_head(victims, budget, count):
    heads = AttributionHeads(8, 4, victims, budget)
    assert torch.equal(heads.log_variances, torch.zeros(count))


@pytest.mark.parametrize(
    ("victims", "message"), [(1, "num_victims must be 0 or at least 2, got 1"), (0, "must ask for a head")]
)
def test_heads_without_a_question_are_refused(victims, message):
    with pytest.raises(ValueError, match=message):
        AttributionHeads(8, 4, victims)


@pytest.mark.parametrize("network", ["small", "resnet18"])
def test_heads_fit_the_recogniser(network):
    psi = AttackRecognizer(4, 6, network)
    features = psi.trunk(torch.rand(2, 6, 16, 16))
    assert features.shape == (2, psi.features)
