"""What is minimised on clean and adversarial images: losses of logits ``(B, K)`` and labels ``(B,)``, to one number."""

import torch.nn.functional as F
from torch import Tensor


def trades_loss(
    clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """CE(f(x), y) + beta KL(p(x) || p(x')), means over the batch; Zhang et al. 2019, arXiv:1901.08573, equation 5.

    Args:
        clean: ``(B, K)`` logits of the images.
        adversarial: ``(B, K)`` logits of their adversarial versions.
        labels: ``(B,)``.
        beta: The paper's 1/lambda.
        label_smoothing: Of the cross-entropy.
    """
    natural = F.cross_entropy(clean, labels, label_smoothing=label_smoothing)
    return natural + beta * divergence(clean, adversarial).mean()


def mart_loss(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Boosted cross-entropy + beta KL(p(x) || p(x')) (1 - p_y(x)); Wang et al. 2020 (ICLR), equations 8 to 11.

    The boosted cross-entropy is -log p_y(x') - log(1 - max_{k != y} p_k(x')). The logarithm of 1 - p_k is that of the
    other classes' sum, which needs no constant against log 0 as in the authors' code.

    Args:
        clean: ``(B, K)`` logits of the images.
        adversarial: ``(B, K)`` logits of their adversarial versions.
        labels: ``(B,)``.
        beta: The paper's lambda.
    """
    column = labels[:, None]
    rival = adversarial.scatter(1, column, -float("inf")).argmax(1, keepdim=True)
    without = adversarial.scatter(1, rival, -float("inf")).logsumexp(1) - adversarial.logsumexp(1)
    boosted = F.cross_entropy(adversarial, labels) - without.mean()
    doubt = 1 - clean.softmax(1).gather(1, column)[:, 0]
    return boosted + beta * (divergence(clean, adversarial) * doubt).mean()


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p || q), ``(B,)``, of the distributions with logits ``clean`` and ``adversarial``, in nats."""
    log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
