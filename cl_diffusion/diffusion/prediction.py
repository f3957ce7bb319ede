"""What a denoiser is trained to predict, and how each prediction determines the clean image and the noise."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from cl_diffusion.diffusion.schedule import Scales

Prediction = Literal["epsilon", "x0", "v"]


def training_target(prediction: Prediction, x0: Tensor, noise: Tensor, scales: Scales) -> Tensor:
    """What the network should return: ``eps``, ``x0`` or ``v = sqrt(abar) eps - sqrt(1 - abar) x0``.

    ``v``: Salimans & Ho 2022, section 4. ``x0``, ``noise``: ``(B, ...)``, ``scales`` broadcastable to them. The inverse
    of ``x0_and_noise``.

    Raises:
        ValueError: the prediction is unknown.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return x0
    if prediction == "v":
        return scales.signal * noise - scales.noise * x0
    raise unknown_prediction(prediction)


def x0_and_noise(prediction: Prediction, output: Tensor, x_t: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    """The one pair ``(x0, eps)`` that gives both the network's ``output`` and ``x_t``.

    Solves ``x_t = sqrt(abar) x0 + sqrt(1 - abar) eps`` together with the definition of the prediction; for ``v``:
    ``x0 = sqrt(abar) x_t - sqrt(1 - abar) v`` (Salimans & Ho 2022, appendix D). Shapes as in ``training_target``.

    Raises:
        ValueError: the prediction is unknown.
    """
    if prediction == "epsilon":
        return (x_t - scales.noise * output) / scales.signal, output
    if prediction == "x0":
        return output, (x_t - scales.signal * output) / scales.noise
    if prediction == "v":
        return scales.signal * x_t - scales.noise * output, scales.noise * x_t + scales.signal * output
    raise unknown_prediction(prediction)


def unknown_prediction(prediction: object) -> ValueError:
    """The error that names the known predictions."""
    return ValueError(f"prediction={prediction!r}: expected one of {', '.join(map(repr, get_args(Prediction)))}.")
