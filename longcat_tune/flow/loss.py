"""The training loss, unreduced over the batch so that it can be told apart by noise level."""

from __future__ import annotations

from torch import Tensor


def flow_loss(
    prediction_BCTHW: Tensor, target_BCTHW: Tensor, *, num_cond_latents: int, huber_c: float | None = None
) -> Tensor:
    """Mean error over the noised frames, per sample, in float32.

    Args:
        prediction_BCTHW: the transformer's raw output.
        target_BCTHW: clean - noise.
        num_cond_latents: leading frames that are given, not predicted.
        huber_c: None: squared error. Else the pseudo-Huber error, see `pseudo_huber`.

    Returns:
        Float32 [B].
    """
    error = prediction_BCTHW[:, :, num_cond_latents:].float() - target_BCTHW[:, :, num_cond_latents:].float()
    values = error.square() if huber_c is None else pseudo_huber(error, huber_c)
    return values.flatten(1).mean(1)


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """Give 2 c (sqrt(x^2 + c^2) - c): x^2 where |x| is far below c, 2 c |x| where it is far above.

    Source: Charbonnier et al. 1997 (doi 10.1109/83.551699), scaled as in huggingface/diffusers,
    examples/text_to_image/train_text_to_image_lora.py and SimpleTuner (`loss_type: huber`).

    Args:
        error: x.
        c: where the square turns into a line, above 0.
    """
    square = error.square()
    # The same number as the formula above, without its difference of two nearly equal ones.
    return 2 * c * square / ((square + c * c).sqrt() + c)
