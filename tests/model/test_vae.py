"""The VAE's door: the official numbers, the sizes it refuses, and what the miniature must reconstruct.

Golden tensors come from ../shared or, in a plain clone, from tests/golden/data; what neither has is skipped.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat_tune.data.demo import Scene, random_scene
from longcat_tune.data.demo_drawing import render
from longcat_tune.errors import CheckpointError, DataError
from longcat_tune.model.vae import VideoAutoencoder, latent_channels, vae_identity

TINY = Path(__file__).parents[2] / "longcat_tune" / "assets" / "tiny"
COMMITTED = Path(__file__).parents[1] / "golden" / "data"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "model"
GOLDEN = SHARED if SHARED.is_dir() else COMMITTED
CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-3, "atol": 3e-4}

PEAKS = """
import torch
from diffusers import AutoencoderKLWan
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.training.process_memory import host_peak_bytes


class Shrinking(torch.nn.Module):
    def forward(self, pixels, feat_cache, feat_idx):
        return pixels.mean(dim=(1, 2), keepdim=True)[..., ::8, ::8].expand(-1, 32, -1, -1, -1).clone()


torch.set_num_threads(1)
vae = VideoAutoencoder(AutoencoderKLWan(base_dim=4, num_res_blocks=1))
vae.module.encoder = Shrinking()
for num_chunks in (24, 234):
    vae.encode(torch.ones(3, 4 if number else 1, 256, 256, dtype=torch.uint8) for number in range(num_chunks))
    print(host_peak_bytes())
"""
"""Encodes two clips, with an encoder that takes no time, and prints the greatest memory so far in bytes."""

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
    return frames_FHW3.permute(3, 0, 1, 2)


def pixels_of(frames_CFHW: Tensor) -> Tensor:
    return frames_CFHW.float() / 127.5 - 1


def chunks_of(frames_CFHW: Tensor) -> Iterator[Tensor]:
    """The first frame, then four at a time."""
    for last in range(0, frames_CFHW.shape[1], 4):
        yield frames_CFHW[:, max(0, last - 3) : last + 1]


def encoded(vae: VideoAutoencoder, frames_CFHW: Tensor) -> Tensor:
    return vae.encode(chunks_of(frames_CFHW))


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
    frames = clip(Scene("circle", "red", "right", "blue"), 64, 48, 5)
    mean, _ = tiny_vae().encode_posterior(pixels_of(frames))
    torch.testing.assert_close(encoded(tiny_vae(), frames), tiny_vae().normalize(mean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_frames", [1, 5, 17])
def test_a_clip_encoded_as_it_comes_equals_the_whole_to_the_bit(dtype, num_frames):
    vae = VideoAutoencoder.load(TINY, dtype=dtype, device=CPU)
    frames = torch.randint(0, 256, (3, num_frames, 48, 64), dtype=torch.uint8)
    mean, _ = vae.encode_posterior(pixels_of(frames))
    assert torch.equal(encoded(vae, frames), vae.normalize(mean))
    # Nothing is left of a clip that would colour the next.
    assert torch.equal(encoded(vae, frames), vae.normalize(mean))


@pytest.mark.parametrize(
    ("dtype", "num_latents"), [(torch.float32, 1), (torch.float32, 4), (torch.bfloat16, 2)]
)
def test_a_clip_decoded_frame_by_frame_equals_the_whole_to_the_bit(dtype, num_latents):
    vae = VideoAutoencoder.load(TINY, dtype=dtype, device=CPU)
    latents = torch.randn(16, num_latents, 4, 6, generator=torch.Generator().manual_seed(0))
    whole = vae.module.decode(vae.denormalize(latents)[None].to(dtype)).sample[0].float()
    assert whole.shape == (3, 4 * (num_latents - 1) + 1, 32, 48)
    assert torch.equal(vae.decode(latents), whole)
    # Nothing is left of a clip that would colour the next.
    assert torch.equal(vae.decode(latents), whole)


def test_the_decoder_has_one_latent_frame_at_a_time():
    vae = VideoAutoencoder.load(TINY, dtype=torch.float32, device=CPU)
    shapes = []
    vae.module.decoder.register_forward_hook(
        lambda _, inputs, out: shapes.append((inputs[0].shape, out.shape))
    )
    vae.decode(torch.zeros(16, 3, 4, 4))
    one = (1, 16, 1, 4, 4)
    assert shapes == [(one, (1, 3, 1, 32, 32)), (one, (1, 3, 4, 32, 32)), (one, (1, 3, 4, 32, 32))]


def test_memory_does_not_grow_with_the_clip():
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    # The long clip is 183 MB as bytes and 734 MB as numbers; its latents are 15 MB, made in a few steps.
    assert long - short < 92_000_000, f"{short} bytes for 93 frames, {long} for 933"


def test_first_latent_frame_is_that_of_the_first_frame_alone():
    frames = clip(Scene("square", "green", "down", "white"), 64, 64, 9)
    latents = encoded(tiny_vae(), frames)
    torch.testing.assert_close(latents[:, :1], encoded(tiny_vae(), frames[:, :1]), rtol=1e-5, atol=1e-5)


def test_miniature_reconstructs_unseen_clips():
    rng = np.random.default_rng(20270101)
    scores = []
    for width, height, num_frames in [(64, 64, 9)] * 4 + [(64, 64, 17)] * 2 + [(128, 96, 9)]:
        frames = clip(random_scene(rng), width, height, num_frames)
        scores.append(decibels(tiny_vae().decode(encoded(tiny_vae(), frames)), pixels_of(frames)))
    assert np.mean(scores) >= 29.5, [round(score, 1) for score in scores]


def test_miniature_latents_have_unit_scale():
    rng = np.random.default_rng(20270102)
    latents = torch.cat(
        [encoded(tiny_vae(), clip(random_scene(rng), 64, 64, 9)).flatten(1) for _ in range(12)], 1
    )
    assert latents.mean().abs() < 0.2
    assert 0.8 < latents.std() < 1.2


def test_miniature_posterior_sample_decodes_like_its_mode():
    # Image-to-video starts from a sample and must keep the image.
    frames = clip(Scene("triangle", "yellow", "still", "purple"), 64, 64, 1)
    mean, std = tiny_vae().encode_posterior(pixels_of(frames))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    from_mode, from_sample = (
        tiny_vae().decode(tiny_vae().normalize(latents)) for latents in (mean, mean + std * noise)
    )
    assert decibels(from_sample, from_mode) >= 40


def test_bf16_decodes_to_float32_near_the_same():
    frames = clip(Scene("circle", "red", "right", "blue"), 64, 64, 5)
    pixels = pixels_of(frames)
    vae = VideoAutoencoder.load(TINY, dtype=torch.bfloat16, device=CPU)
    latents = encoded(vae, frames)
    video = vae.decode(latents)
    assert latents.dtype == video.dtype == torch.float32
    assert decibels(video, pixels) > decibels(tiny_vae().decode(encoded(tiny_vae(), frames)), pixels) - 2


def test_tiling_is_close_and_only_changes_large_frames():
    tiled = VideoAutoencoder.load(TINY, dtype=torch.float32, device=CPU, tiling=True)
    small = clip(Scene("circle", "red", "right", "blue"), 64, 64, 5)
    torch.testing.assert_close(encoded(tiled, small), encoded(tiny_vae(), small))
    large = clip(Scene("circle", "red", "right", "blue"), 320, 288, 1)
    video = tiled.decode(encoded(tiled, large))
    assert video.shape == large.shape
    assert decibels(video, tiny_vae().decode(encoded(tiny_vae(), large))) > 25


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
        tiny_vae().encode_posterior(torch.zeros(shape))
    assert str(caught.value) == message


def test_sizes_that_would_be_cut_are_refused_of_a_clip_that_is_encoded_as_it_comes():
    with pytest.raises(DataError, match=r"width \(90\) must be a multiple of 8"):
        tiny_vae().encode([torch.zeros(3, 1, 64, 90, dtype=torch.uint8)])
    with pytest.raises(AssertionError):
        tiny_vae().encode(torch.zeros(3, 5, 64, 64, dtype=torch.uint8).split(1, dim=1))


def test_the_number_of_channels_is_read_without_loading(tmp_path):
    assert latent_channels(TINY) == 16
    config = copied(tmp_path) / "vae" / "config.json"
    config.write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: gives no z_dim, the number of channels"):
        latent_channels(tmp_path)


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
