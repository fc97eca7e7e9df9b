"""Images: the order of their axes, and random changes in training."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from torch import Tensor

from sklearn_moe.documentation import Documented

# The last axis holds the channels if it is not longer than this.
MOST_CHANNELS = 4


def channels_first(x: Tensor) -> Tensor:
    """Return a view of images as (n_samples, n_channels, height, width).

    The images may be (n, h, w), (n, h, w, c) with at most 4 channels, or (n, c, h, w).
    """
    if x.dim() == 3:
        return x.unsqueeze(1)
    if x.dim() != 4:
        raise ValueError(
            "Convolutions need images of shape (height, width), (height, width, n_channels) or "
            f"(n_channels, height, width), got samples of shape {tuple(x.shape[1:])}. Pass "
            "input_shape if X holds flattened images, or experts='mlp'."
        )
    return x.permute(0, 3, 1, 2) if has_channels_last(x) else x


def has_channels_last(x: Tensor) -> bool:
    """Whether the last of the axes (n, h, w, c) or (n, c, h, w) holds the channels."""
    return x.dim() == 4 and x.shape[3] <= MOST_CHANNELS


class FlipCrop(Documented, BaseEstimator):
    """Flip each training image at random from left to right, and shift it by a few pixels.

    The pixels that a shift uncovers are filled by reflection. Flip and shift are drawn anew for
    each image, each time.

    Parameters
    ----------
    flip : bool, default=True
        Whether to flip images, each with a probability of one half. Set it to False for digits and
        letters.
    crop : int, default=4
        Largest shift, in pixels; it must be smaller than height and width.

    Examples
    --------
    >>> from sklearn_moe import FlipCrop, MoEClassifier
    >>> clf = MoEClassifier(experts="conv", augmentation=FlipCrop(flip=False, crop=2))
    """

    _parameter_constraints: dict = {
        "flip": ["boolean"],
        "crop": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, flip: bool = True, *, crop: int = 4):
        self.flip = flip
        self.crop = crop

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return changed copies of a batch of images.

        Parameters
        ----------
        x : Tensor of shape (n, h, w), (n, h, w, c) or (n, c, h, w)
            Images.
        generator : torch.Generator, default=None
            Source of flips and shifts, on the images' device.

        Returns
        -------
        Tensor of the same shape
        """
        images = channels_first(x)
        n_samples, _, height, width = images.shape
        if self.crop >= min(height, width):
            raise ValueError(
                f"FlipCrop(crop={self.crop}) must be smaller than the images, {height} x {width}."
            )

        def draw(low, high):
            shape = (n_samples, 1)
            return torch.randint(low, high, shape, generator=generator, device=x.device)

        rows = _shifted(height, draw(-self.crop, self.crop + 1))
        columns = _shifted(width, draw(-self.crop, self.crop + 1))
        if self.flip:
            columns = torch.where(draw(0, 2) == 1, width - 1 - columns, columns)
        sample = torch.arange(n_samples, device=x.device)[:, None, None]
        changed = images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
        if x.dim() == 3:
            return changed.squeeze(3)
        return changed if has_channels_last(x) else changed.permute(0, 3, 1, 2)


def augment(
    augmentation: Callable[[Tensor, torch.Generator | None], Tensor],
    x: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Apply an augmentation to a batch; raise an error if it changes the shape or the type."""
    changed = augmentation(x, generator)
    got = (tuple(changed.shape), changed.dtype) if isinstance(changed, Tensor) else changed
    if got not in [(tuple(x.shape), dtype) for dtype in (x.dtype, torch.float32)]:
        raise ValueError(
            f"augmentation={augmentation!r} must return a batch of the same shape and type; one "
            f"of shape {tuple(x.shape)} and {x.dtype} gave {got!r}."
        )
    return changed


def _shifted(length, shift):
    """Return, for each sample, the original positions of its shifted rows or columns."""
    places = (torch.arange(length, device=shift.device) + shift).abs()
    return (length - 1) - ((length - 1) - places).abs()


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "flip_crop": FlipCrop(),
}
"""The augmentations that ``MoEClassifier(augmentation=...)`` knows by name."""
