"""The VAE's door: the official numbers, the sizes it refuses, and what the miniature must reconstruct.

Golden tensors come from ../shared or, in a plain clone, from tests/golden/data; what neither has is skipped.
"""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat_tune.data.demo import Scene, random_scene, render
from longcat_tune.errors import CheckpointError, DataError
from longcat_tune.model.vae import VideoAutoencoder, vae_identity

TINY = Path(__file__).parents[2] / "longcat_tune" / "assets" / "tiny"
COMMITTED = Path(__file__).parents[1] / "golden" / "data"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "model"
GOLDEN = SHARED if SHARED.is_dir() else COMMITTED
CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-3, "atol": 3e-4}

needs_golden_vae = pytest.mark.skipif(
    not (GOLDEN / "weights_vae.safetensors").is_file(), reason="needs ../shared/golden/model"
)


@cache
def tiny_vae() -> VideoAutoencoder:
    return VideoAutoencoder.load(TINY, dtype=torch.float32, device=CPU)


@cache
def golden_vae() -> VideoAutoencoder:
    config = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["vae_config"]
    module = AutoencoderKLWan(
        **{name: value for name, value in config.items() if name not in ("_class", "note")}
    )
    module.load_state_dict(load_file(GOLDEN / "weights_vae.safetensors"))
    return VideoAutoencoder(module.eval())


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def clip(scene: Scene, width: int, height: int, num_frames: int) -> Tensor:
    frames_FHW3 = torch.from_numpy(render(scene, width, height, num_frames))
    return frames_FHW3.permute(3, 0, 1, 2).float() / 127.5 - 1


def decibels(got: Tensor, expected: Tensor) -> float:
    return 10 * math.log10(4 / torch.nn.functional.mse_loss(got, expected).item())


def copied(tmp_path: Path) -> Path:
    shutil.copytree(TINY / "vae", tmp_path / "vae")
    return tmp_path


def load(checkpoint: Path) -> VideoAutoencoder:
    return VideoAutoencoder.load(checkpoint, dtype=torch.float32, device=CPU)


def test_normalisation_equals_official():
    tensors = golden("latent_norm")
    # The released statistics are the class's defaults; a model without weights carries them.
    with torch.device("meta"):
        module = AutoencoderKLWan()
    vae = VideoAutoencoder(module)
    latents = tensors["in.vae_latents"]
    torch.testing.assert_close(vae.normalize(latents), tensors["out.normalized"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.denormalize(latents), tensors["out.denormalized"], rtol=1e-5, atol=1e-5)


@needs_golden_vae
@pytest.mark.parametrize(
    ("case", "pixels"),
    [("pipe_A_i2v", "out.image_preprocessed"), ("pipe_A_vc_kv", "out.video_preprocessed_used")],
)
def test_posterior_equals_official(case, pixels):
    tensors = golden(case)
    pixels_CFHW = tensors[pixels][0] if tensors[pixels].ndim == 5 else tensors[pixels].transpose(0, 1)
    mean, std = golden_vae().encode_posterior(pixels_CFHW)
    torch.testing.assert_close(mean, tensors["out.vae_posterior_mean"][0], **CLOSE)
    torch.testing.assert_close(std, tensors["out.vae_posterior_std"][0], **CLOSE)
    sampled = mean + std * tensors["in.posterior_noise"][0]
    torch.testing.assert_close(golden_vae().normalize(sampled), tensors["out.cond_latents"][0], **CLOSE)


@needs_golden_vae
def test_decoded_video_equals_official():
    tensors = golden("pipe_A_t2v")
    video = golden_vae().decode(tensors["out.latents"][0])
    torch.testing.assert_close(video, tensors["out.video"][0], **CLOSE)


def test_encode_is_the_normalised_mode():
    pixels = clip(Scene("circle", "red", "right", "blue"), 64, 48, 5)
    mean, _ = tiny_vae().encode_posterior(pixels)
    torch.testing.assert_close(tiny_vae().encode(pixels), tiny_vae().normalize(mean))


def test_first_latent_frame_is_that_of_the_first_frame_alone():
    pixels = clip(Scene("square", "green", "down", "white"), 64, 64, 9)
    latents = tiny_vae().encode(pixels)
    torch.testing.assert_close(latents[:, :1], tiny_vae().encode(pixels[:, :1]), rtol=1e-5, atol=1e-5)


def test_miniature_reconstructs_unseen_clips():
    rng = np.random.default_rng(20270101)
    scores = []
    for width, height, num_frames in [(64, 64, 9)] * 4 + [(64, 64, 17)] * 2 + [(128, 96, 9)]:
        pixels = clip(random_scene(rng), width, height, num_frames)
        scores.append(decibels(tiny_vae().decode(tiny_vae().encode(pixels)), pixels))
    assert np.mean(scores) >= 26, [round(score, 1) for score in scores]


def test_miniature_latents_have_unit_scale():
    rng = np.random.default_rng(20270102)
    latents = torch.cat(
        [tiny_vae().encode(clip(random_scene(rng), 64, 64, 9)).flatten(1) for _ in range(12)], 1
    )
    assert latents.mean().abs() < 0.2
    assert 0.8 < latents.std() < 1.2


def test_miniature_posterior_sample_decodes_like_its_mode():
    # Image-to-video starts from a sample and must keep the image.
    pixels = clip(Scene("triangle", "yellow", "still", "purple"), 64, 64, 1)
    mean, std = tiny_vae().encode_posterior(pixels)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    from_mode, from_sample = (
        tiny_vae().decode(tiny_vae().normalize(latents)) for latents in (mean, mean + std * noise)
    )
    assert decibels(from_sample, from_mode) >= 40


def test_bf16_decodes_to_float32_near_the_same():
    pixels = clip(Scene("circle", "red", "right", "blue"), 64, 64, 5)
    vae = VideoAutoencoder.load(TINY, dtype=torch.bfloat16, device=CPU)
    latents = vae.encode(pixels)
    video = vae.decode(latents)
    assert latents.dtype == video.dtype == torch.float32
    assert decibels(video, pixels) > decibels(tiny_vae().decode(tiny_vae().encode(pixels)), pixels) - 2


def test_tiling_is_close_and_only_changes_large_frames():
    tiled = VideoAutoencoder.load(TINY, dtype=torch.float32, device=CPU, tiling=True)
    small = clip(Scene("circle", "red", "right", "blue"), 64, 64, 1)
    torch.testing.assert_close(tiled.encode(small), tiny_vae().encode(small))
    large = clip(Scene("circle", "red", "right", "blue"), 320, 288, 1)
    video = tiled.decode(tiled.encode(large))
    assert video.shape == large.shape
    assert decibels(video, tiny_vae().decode(tiny_vae().encode(large))) > 25


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 50, 64, 64), "num_frames (50) must be 4k + 1; use 49 or 53"),
        ((3, 2, 64, 64), "num_frames (2) must be 4k + 1; use 1 or 5"),
        ((3, 1, 64, 90), "width (90) must be a multiple of 8; use 88 or 96"),
        ((3, 1, 60, 64), "height (60) must be a multiple of 8; use 56 or 64"),
    ],
)
def test_sizes_that_would_be_cut_are_refused(shape, message):
    with pytest.raises(DataError) as caught:
        tiny_vae().encode(torch.zeros(shape))
    assert str(caught.value) == message


def test_identity_follows_content_not_place(tmp_path):
    checkpoint = copied(tmp_path)
    assert vae_identity(checkpoint) == vae_identity(TINY)
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert vae_identity(checkpoint) != vae_identity(TINY)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"vae.config\.json: missing; the checkpoint is incomplete"):
        load(tmp_path)
    checkpoint = copied(tmp_path)
    (checkpoint / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae: holds no \.safetensors weights"):
        vae_identity(checkpoint)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    checkpoint = copied(tmp_path)
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys \(encoder\.conv_in\.weight\)"):
        load(checkpoint)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as a Wan VAE"):
        load(checkpoint)
