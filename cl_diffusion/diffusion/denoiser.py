"""A network together with the noising process that it inverts."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from cl_diffusion.diffusion.network import declared_classes, is_diffusers_model
from cl_diffusion.diffusion.network_check import batch_error, check_classes, check_output, forward_error
from cl_diffusion.diffusion.prediction import Prediction, unknown_prediction, x0_and_noise
from cl_diffusion.diffusion.schedule import NoiseSchedule
from cl_diffusion.evaluation_mode import evaluation_mode


class Output(NamedTuple):
    """What a network returned: its prediction, ``(B, C, H, W)``, and where it has a variance, the fraction of that.

    ``variance``: shaped likewise, about -1 for the least and 1 for the most that a step's can be; None: it has none.
    """

    prediction: Tensor
    variance: Tensor | None


class Denoiser(nn.Module):
    """The denoiser ``f(x_t, t, labels)``: a network, its noise schedule and what its output means.

    ``state_dict`` keys are ``network.*`` alone.

    Args:
        network: a diffusers 2-D model (``UNet2DModel``, or another with ``class_labels`` and ``return_dict`` in its
            forward), or any module called ``network(x_t, t, labels)``, where ``labels`` may be None.
        schedule: the noising process.
        prediction: what the network predicts: the noise, the clean image, or ``v``.
        null_class: the label that stands for none, of a network that was trained with labels dropped; images without
            labels are given it.
        learned_variance: the network returns twice the images' channels, of which the second half says the variance of
            a reverse step (Nichol & Dhariwal 2021, 2102.09672, eq. 15).

    Raises:
        ValueError: the prediction is unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: Prediction = "epsilon",
        null_class: int | None = None,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise unknown_prediction(prediction)
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.null_class = null_class
        self.learned_variance = learned_variance
        self._is_diffusers_model = is_diffusers_model(network)

    @property
    def num_classes(self) -> int | None:
        """How many classes the network declares to embed, the null class apart; None: it does not say."""
        classes = declared_classes(self.network)
        return None if classes is None else classes[1] - (self.null_class is not None)

    @property
    def takes_labels(self) -> bool:
        """Whether labels reach the network. A diffusers model without class embeddings would refuse them."""
        has_embedding = getattr(self.network, "class_embedding", None) is not None
        return not self._is_diffusers_model or has_embedding or self.num_classes is not None

    @property
    def device(self) -> torch.device:
        """Where the schedule's tables, and so the images, are expected to be."""
        return self.schedule.signal.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the network's parameters; torch's default for a network without any."""
        floating = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The raw prediction: ``(B, C, H, W)`` from ``x_t`` of that shape, ``t`` and ``labels`` int64 ``(B,)``.

        Labels are dropped where the network takes none.

        Raises:
            ValueError: a class-conditional diffusers model is given no labels, and was not trained without.
            RuntimeError: the network does not take the batch; the message says what it holds.
        """
        return self.output(x_t, t, labels).prediction

    def output(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Output:
        """``forward``, and the variance where it is learned."""
        raw = self._raw(x_t, t, labels)
        if not self.learned_variance:
            return Output(raw, None)
        prediction, variance = raw.chunk(2, dim=1)
        return Output(prediction, variance)

    def _raw(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None and self.null_class is not None:
            labels = torch.full_like(t, self.null_class)
        try:
            return self._called(x_t, t, labels)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            raise batch_error(self.network, x_t, labels, self.dtype, error) from error

    def _called(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        if not self._is_diffusers_model:
            return self.network(x_t, t, labels)  # type: ignore[no-any-return]
        if not self.takes_labels:
            return self.network(x_t, t, return_dict=False)[0]  # type: ignore[no-any-return]
        if labels is None:
            raise ValueError(
                f"labels=None, but the network embeds classes (num_classes={self.num_classes}): give one an image."
            )
        return self.network(x_t, t, class_labels=labels, return_dict=False)[0]  # type: ignore[no-any-return]

    def x0_and_noise(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The estimates of the clean image and of the noise, ``(B, C, H, W)`` each; they mix to ``x_t`` exactly."""
        output = self(x_t, t, labels)
        return x0_and_noise(self.prediction, output, x_t, self.schedule.scales(t, like=x_t))

    def estimates_at(self, x_t: Tensor, t: int | Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x0_and_noise``, at one timestep for all or ``(B,)``: only the network itself in its own precision."""
        return self.estimates_of(self.output_at(x_t, t, labels).prediction, x_t, t)

    def output_at(self, x_t: Tensor, t: int | Tensor, labels: Tensor | None = None) -> Output:
        """``output`` at one timestep for all or ``(B,)``, in the precision of ``x_t``."""
        prediction, variance = self.output(x_t.to(self.dtype), _timesteps(t, x_t), labels)
        return Output(prediction.to(x_t), None if variance is None else variance.to(x_t))

    def estimates_of(self, prediction: Tensor, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """The estimates of the clean image and of the noise that a prediction at ``x_t`` amounts to."""
        return x0_and_noise(self.prediction, prediction, x_t, self.schedule.scales(_timesteps(t, x_t), like=x_t))

    def check(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Find out before training whether network and data fit, by one forward of a zero image of the last class.

        Training flags and random number generators are left as found.

        Args:
            image_shape: ``(C, H, W)``.
            num_classes: number of classes over the whole stream of tasks.

        Raises:
            ValueError: the network embeds fewer classes, fails on the shape, or returns another one.
        """
        if self.takes_labels:
            check_classes(self.network, num_classes, null_class=self.null_class is not None)
        image = torch.zeros(1, *image_shape, device=self.device, dtype=self.dtype)
        t = torch.zeros(1, device=self.device, dtype=torch.int64)
        accelerators = [self.device] if self.device.type == "cuda" else []
        try:
            with evaluation_mode(self), torch.no_grad(), torch.random.fork_rng(accelerators):
                output = self._raw(image, t, torch.full_like(t, num_classes - 1))
        except Exception as error:
            raise forward_error(self.network, image_shape, num_classes) from error
        check_output(self.network, output, image_shape, self.learned_variance)


def _timesteps(t: int | Tensor, x_t: Tensor) -> Tensor:
    return torch.full((len(x_t),), t, device=x_t.device) if isinstance(t, int) else t
