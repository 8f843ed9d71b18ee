"""Numbers beside pictures: what can be measured of a render without another model.

They compare renders of one request with each other; by themselves they say little.
Letters: F frames, H rows, W columns, 3 colours.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from longcat_tune.sampling.pictures import Frames

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

HIGHEST_PSNR = 99.0
"""Stands for equal pictures, whose ratio is infinite."""


def temporal_consistency(frames_FHW3: Frames) -> float | None:
    """How alike neighbouring frames are: the mean correlation of their grey values.

    1 for a picture that stands still or only changes its brightness, about 0 for noise. None for one frame.
    """
    if len(frames_FHW3) < 2:
        return None
    before_HW = _centred(_grey(frames_FHW3[0]))
    alike = []
    # Frame by frame: all of a 480p render in float32 would take half a gigabyte.
    for picture_HW3 in frames_FHW3[1:]:
        after_HW = _centred(_grey(picture_HW3))
        lengths = float(np.linalg.norm(before_HW) * np.linalg.norm(after_HW))
        # Two plain pictures do not differ in anything that correlation sees.
        alike.append(float((before_HW * after_HW).sum()) / lengths if lengths else 1.0)
        before_HW = after_HW
    return float(np.mean(alike))


def sharpness(frames_FHW3: Frames) -> float:
    """The variance of the Laplacian of the grey values (0 to 255), averaged over frames; 0 if plain.

    Source: Pech-Pacheco et al. 2000, Diatom autofocusing in brightfield microscopy, section 2.
    """
    return float(np.mean([_laplacian(_grey(picture_HW3)).var() for picture_HW3 in frames_FHW3]))


def psnr(picture_HW3: Frames, wanted_HW3: Frames) -> float:
    """Peak signal-to-noise ratio of two pictures of one size, in dB, at most 99."""
    error = float(np.square(picture_HW3.astype(np.float32) - wanted_HW3.astype(np.float32)).mean())
    return HIGHEST_PSNR if error == 0 else min(HIGHEST_PSNR, 10 * math.log10(255**2 / error))


def _grey(picture_HW3: Frames) -> NDArray[np.float32]:
    grey: NDArray[np.float32] = picture_HW3.astype(np.float32) @ LUMA
    return grey


def _centred(grey_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    # In float64: the mean of a plain picture must be that picture's value to the bit.
    centred: NDArray[np.float32] = (grey_HW - grey_HW.mean(dtype=np.float64)).astype(np.float32)
    return centred


def _laplacian(grey_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    inner = grey_HW[1:-1, 1:-1]
    around = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:]
    laplacian: NDArray[np.float32] = around - 4 * inner
    return laplacian
