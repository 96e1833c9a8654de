"""What a discriminator pays for telling real from fake badly, in four forms.

Legend: R logits of real samples, F of fake ones.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nearfar._similarity import accumulation
from nearfar.checks import expect, expect_choice

FORMS = ("dual", "bce", "lsgan", "relativistic")


def discriminator(
    real: Float[Tensor, " R"],
    fake: Float[Tensor, " F"],
    *,
    form: str = "dual",
    all_real: Float[Tensor, " M"] | None = None,
    all_fake: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """The discriminator's loss from its logits.

    With r real and f fake logits, s the logistic function:

        dual          H(r, f) + H(-f, -r),  H(a, b) = mean_i -log( exp(a_i) / (exp(a_i) + sum_j exp(b_j)) )
        bce           mean -log s(r) + mean -log s(-f)
        lsgan         mean (r - 1)^2 + mean f^2
        relativistic  mean -log s(r - mean f) + mean -log s(mean r - f)

    Args:
        real: [R], high where the discriminator holds a sample for real.
        fake: [F].
        form: one of the above.
        all_real: [M], the real logits of all processes, with gradient; None: those of this one.
        all_fake: [N], the same of fake ones.

    Returns:
        The loss, float32 (float64 for float64 input): a mean over the local samples.

    Raises:
        ValueError: no real or no fake logits.

    Notes: H needs only the log-sum of the other side, so the cost is O(R + F), not O(R F).

    Source: Yu, Liu, Jiang, Wang, Davis, Fritz, "Dual Contrastive Loss and Attention for GANs", ICCV 2021; Mao et al.,
        "Least Squares Generative Adversarial Networks", ICCV 2017; Jolicoeur-Martineau, "The relativistic
        discriminator", ICLR 2019.
    """
    expect_choice("form", form, FORMS)
    for name, logits in (("real", real), ("fake", fake)):
        expect(logits.ndim == 1 and len(logits) >= 1, name, "1 or more logits, shape [N]", tuple(logits.shape))
    kind = accumulation(real, fake)
    real, fake = real.to(kind), fake.to(kind)
    others_real = real if all_real is None else all_real.to(kind)
    others_fake = fake if all_fake is None else all_fake.to(kind)
    if form == "dual":
        return _against(real, others_fake) + _against(-fake, -others_real)
    if form == "bce":
        return functional.softplus(-real).mean() + functional.softplus(fake).mean()
    if form == "lsgan":
        return (real - 1).square().mean() + fake.square().mean()
    return functional.softplus(others_fake.mean() - real).mean() + functional.softplus(fake - others_real.mean()).mean()


def _against(a: Tensor, b: Tensor) -> Tensor:
    """H(a, b): every entry of a against all of b."""
    return functional.softplus(torch.logsumexp(b, 0) - a).mean()
