"""The video VAE: pixels to the latents that the transformer sees, and back. The one door to diffusers.

Knows one clip at a time; knows nothing of files other than the checkpoint, of batches or of captions.
Letters: C channels (3 of pixels, 16 of latents), F pixel frames, T/H/W frames, rows and columns.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longcat_tune.errors import CheckpointError, DataError
from longcat_tune.model.identity import component_identity, file_hash
from longcat_tune.types import SPATIAL_STRIDE, TEMPORAL_STRIDE

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

logger = logging.getLogger(__name__)

COMPONENT = "vae"
NAMED_AT_MOST = 5
LATENTS_AT_ONCE = 64


def vae_identity(checkpoint: Path, *, hash_of: Callable[[Path], str] = file_hash) -> str:
    """Fingerprint of a checkpoint's VAE, without loading it.

    Args:
        checkpoint: the folder that holds `vae/`.
        hash_of: as in `component_identity`.

    Raises:
        CheckpointError: the folder or one of its files is missing.
    """
    return component_identity(_component(checkpoint), hash_of=hash_of)


def latent_channels(checkpoint: Path) -> int:
    """How many channels a checkpoint's VAE gives its latents, without loading it.

    Raises:
        CheckpointError: the folder or one of its files is missing, or its config does not say.
    """
    path = _component(checkpoint) / "config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["z_dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: gives no z_dim, the number of channels; fetch it again") from error


def chunks_of(frames_CFHW: Tensor) -> list[Tensor]:
    """Cut frames as `encode` takes them: one, then four at a time; what fills no four is left out."""
    whole = 1 + (frames_CFHW.shape[1] - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE
    return [frames_CFHW[:, :1], *frames_CFHW[:, 1:whole].split(TEMPORAL_STRIDE, dim=1)]


class VideoAutoencoder:
    """A loaded VAE with the latent statistics of its checkpoint.

    Args:
        module: diffusers' model, in the precision and on the device it is to work in.
    """

    def __init__(self, module: AutoencoderKLWan) -> None:
        self.module = module
        self._device = torch.device(module.device)
        shape = (-1, 1, 1, 1)
        self._mean_C111 = torch.tensor(module.config.latents_mean, dtype=torch.float32).view(shape)
        self._spread_C111 = torch.tensor(module.config.latents_std, dtype=torch.float32).view(shape)

    @classmethod
    def load(
        cls, checkpoint: Path, *, dtype: torch.dtype, device: torch.device, tiling: bool = False
    ) -> VideoAutoencoder:
        """Load a checkpoint's VAE, strictly.

        Args:
            checkpoint: the folder that holds `vae/`.
            dtype: precision of weights and computation.
            device: where it works.
            tiling: go over frames in overlapping tiles of 256 pixels: far less memory for large frames, but
                the tiles do not see each other and the result differs a little.

        Raises:
            CheckpointError: files are missing or damaged, or weights and config do not fit.
        """
        from diffusers import AutoencoderKLWan

        folder = _component(checkpoint)
        try:
            module, report = AutoencoderKLWan.from_pretrained(
                folder,
                torch_dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{folder}: cannot be read as a Wan VAE ({reason}); fetch it again"
            ) from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                names = ", ".join(map(str, sorted(report[kind])[:NAMED_AT_MOST]))
                rule = f"{len(report[kind])} {kind.replace('_', ' ')} ({names})"
                raise CheckpointError(f"{folder}: weights and config.json do not fit: {rule}; fetch it again")
        if tiling:
            module.enable_tiling()
        return cls(module.to(device).eval().requires_grad_(False))

    @property
    def device(self) -> torch.device:
        """Where it works, and where its latents are."""
        return self._device

    @torch.no_grad()
    def encode_posterior(self, pixels_CFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' distribution, not normalised.

        Args:
            pixels_CFHW: in [-1, 1], with 4k + 1 frames and sides that are multiples of 8.

        Returns:
            mean_CTHW and std_CTHW, float32. The mean is the mode.

        Raises:
            DataError: a length or size of which diffusers would drop the rest without a word.
        """
        _check_size(pixels_CFHW)
        pixels_1CFHW = pixels_CFHW[None].to(device=self.device, dtype=self.module.dtype)
        posterior = self.module.encode(pixels_1CFHW).latent_dist
        return posterior.mean[0].float(), posterior.std[0].float()

    @torch.no_grad()
    def encode(self, chunks: Iterable[Tensor]) -> Tensor:
        """The mode of the latents' distribution, normalised: what training learns from.

        Works through the clip as it comes, so that no memory but that of the latents grows with its length.
        The latents are those of the whole clip at once, to the bit: the encoder looks back only, through the
        features that it keeps (diffusers' AutoencoderKLWan._encode is this loop over a whole clip). With
        tiling the clip is put together first.

        Args:
            chunks: frames_CFHW uint8 RGB; the first frame alone, then four at a time. Height and width are
                multiples of 8.

        Returns:
            latents_CTHW, float32.

        Raises:
            DataError: a size of which the encoder would drop the rest without a word.
        """
        if self.module.use_tiling:
            mean_CTHW, _ = self.encode_posterior(torch.cat([self._pixels(chunk) for chunk in chunks], dim=1))
            return self.normalize(mean_CTHW)
        # One place for every causal convolution; there are fewer of those than of modules.
        features: list[Tensor | None] = [None for _ in self.module.encoder.modules()]
        blocks: list[Tensor] = []
        for number, chunk in enumerate(chunks):
            assert chunk.shape[1] == (TEMPORAL_STRIDE if number else 1)
            _check_size(chunk[:, :1])
            encoded = self.module.encoder(self._pixels(chunk)[None], feat_cache=features, feat_idx=[0])
            mean_CHW = self.module.quant_conv(encoded).chunk(2, dim=1)[0][0, :, 0]
            if number % LATENTS_AT_ONCE == 0:
                # Many small tensors that stay, between large ones that go, would tear the memory to pieces.
                blocks.append(mean_CHW.new_empty(LATENTS_AT_ONCE, *mean_CHW.shape))
            blocks[-1][number % LATENTS_AT_ONCE] = mean_CHW
        mean_TCHW = torch.cat(blocks)[: number + 1]
        return self.normalize(mean_TCHW.transpose(0, 1))

    @torch.no_grad()
    def decode(self, latents_CTHW: Tensor) -> Tensor:
        """Normalised latents to pixels, latent frame by latent frame.

        Each chunk of frames is in host memory before the next one is decoded, so that the device holds no
        more of a long clip than of a short one. The pixels are those of the whole clip at once, to the bit,
        as in `encode`; with tiling the whole clip is on the device.

        Args:
            latents_CTHW: normalised.

        Returns:
            pixels_CFHW, float32 in [-1, 1], in host memory, with 4 (T - 1) + 1 frames.
        """
        latents_1CTHW = self.denormalize(latents_CTHW.to(self.device))[None].to(self.module.dtype)
        if self.module.use_tiling:
            whole_1CFHW: Tensor = self.module.decode(latents_1CTHW).sample
            return whole_1CFHW[0].cpu().float()
        _, num_latents, height, width = latents_CTHW.shape
        num_frames = TEMPORAL_STRIDE * (num_latents - 1) + 1
        pixels_CFHW = torch.empty(3, num_frames, height * SPATIAL_STRIDE, width * SPATIAL_STRIDE)
        features: list[Tensor | None] = [None for _ in self.module.decoder.modules()]
        for number, latent_1CHW in enumerate(self.module.post_quant_conv(latents_1CTHW).split(1, dim=2)):
            decoded_1CFHW = self.module.decoder(latent_1CHW, feat_cache=features, feat_idx=[0])
            last = TEMPORAL_STRIDE * number + 1
            pixels_CFHW[:, last - decoded_1CFHW.shape[2] : last] = decoded_1CFHW[0].clamp(-1, 1)
        return pixels_CFHW

    def _pixels(self, frames_CFHW: Tensor) -> Tensor:
        """Bytes to what the encoder takes, [-1, 1]."""
        return (frames_CFHW.to(self.device).float() / 127.5 - 1).to(self.module.dtype)

    def normalize(self, latents_CTHW: Tensor) -> Tensor:
        """(latents - mean) / std per channel, float32; leading axes are allowed."""
        device = latents_CTHW.device
        return (latents_CTHW.float() - self._mean_C111.to(device)) / self._spread_C111.to(device)

    def denormalize(self, latents_CTHW: Tensor) -> Tensor:
        """Undo normalize."""
        device = latents_CTHW.device
        return latents_CTHW.float() * self._spread_C111.to(device) + self._mean_C111.to(device)


def _component(checkpoint: Path) -> Path:
    """The VAE's folder, with its config and weights there."""
    folder = checkpoint / COMPONENT
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder / 'config.json'}: missing; the checkpoint is incomplete, fetch it again"
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: holds no .safetensors weights; the checkpoint is incomplete, fetch it again"
        )
    return folder


def _check_size(pixels_CFHW: Tensor) -> None:
    _, frames, height, width = pixels_CFHW.shape
    if frames % TEMPORAL_STRIDE != 1:
        below = max(1, (frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
        raise DataError(f"num_frames ({frames}) must be 4k + 1; use {below} or {below + TEMPORAL_STRIDE}")
    for name, size in (("width", width), ("height", height)):
        if size % SPATIAL_STRIDE or size == 0:
            below = max(SPATIAL_STRIDE, size // SPATIAL_STRIDE * SPATIAL_STRIDE)
            above = below + SPATIAL_STRIDE
            raise DataError(f"{name} ({size}) must be a multiple of {SPATIAL_STRIDE}; use {below} or {above}")
