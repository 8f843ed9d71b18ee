"""How well renders of the made-up world show what they were asked for: the miniature's own examination.

Renders by the same loop as `validate`, in batches, and reads the frames back with data.demo_probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longcat_tune.checkpoint.lora_file import read_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.data.demo import Names, Scene
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.demo_probe import FIELDS, Seen, look
from longcat_tune.flow.noising import standard_noise
from longcat_tune.flow.schedule import inference_sigmas
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import load_lora
from longcat_tune.model.text_encoder import load_text_encoder
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.build import compute_context, find_checkpoint, uses_autocast
from longcat_tune.runs.transformer import base_weight, build_base
from longcat_tune.sampling.denoise import Guidance, TextCondition, denoise
from longcat_tune.sampling.pictures import Frames, to_frames
from longcat_tune.types import Bucket, TextFeatures

NUM_STEPS, GUIDANCE = 30, 4.0
AT_ONCE = 16
SMALL = Bucket(64, 64, 9)


@dataclass(frozen=True, slots=True)
class Render:
    """One render and what is seen in it.

    Attributes:
        asked: what its caption said.
        frames_FHW3: the frames.
        seen: what the probe reads in them.
    """

    asked: Names
    frames_FHW3: Frames
    seen: Seen

    @property
    def right(self) -> dict[str, bool]:
        """Which of the four names are what is seen."""
        return self.seen.matches(self.asked)


class Examiner:
    """A base model of a config, with LoRAs or without, that renders captions of the made-up world.

    Args:
        config: model and memory keys as of any run; nothing else is read but the flow's shift.
        loras: files to apply together.
        device: where the model computes.

    Raises:
        UserError: as `build_base` and `load_lora`.
    """

    def __init__(self, config: RunConfig, *, loras: Sequence[Path] = (), device: torch.device) -> None:
        checkpoint = find_checkpoint(config.model)
        self.model: LongCatVideoTransformer = build_base(
            config, checkpoint.transformer, device=device, trains=False
        ).model
        for number, path in enumerate(loras):
            lora = read_lora(path)
            load_lora(
                self.model,
                lora.weights,
                lora.alphas,
                adapter=f"lora-{number}",
                autocast=uses_autocast(config.model),
                base_weight=base_weight,
            )
        self._encoder = load_text_encoder(
            checkpoint.text_encoder,
            choice="auto",
            caption_channels=self.model.caption_channels,
            zero_pad=False,
            dtype=torch.bfloat16,
            device=device,
        )
        self._vae = VideoAutoencoder.load(checkpoint.vae, dtype=torch.float32, device=device)
        self._shift = config.flow.flow_schedule_shift
        self._device = device
        self._compute = compute_context(config.model, device)
        self._negative = self._encoder.encode([""])[0]

    def render(
        self,
        asked: Sequence[Names],
        *,
        size: Bucket = SMALL,
        seed: int = 0,
        language: int = 0,
        starts: Sequence[Scene] | None = None,
    ) -> list[Render]:
        """Render every caption; noise depends on the seed and the place in the list only.

        Args:
            asked: what to ask for.
            size: of the renders.
            seed: of the noise.
            language: which of the captions of Names.
            starts: scenes whose drawn first frames are given, image-to-video.
        """
        renders: list[Render] = []
        for first in range(0, len(asked), AT_ONCE):
            places = range(first, min(first + AT_ONCE, len(asked)))
            captions = [asked[place].captions[language] for place in places]
            given = None if starts is None else [starts[place] for place in places]
            noise = torch.stack([self._noise(size, seed, place) for place in places])
            for place, latents_CTHW in zip(places, self._denoise(captions, noise, given, size), strict=True):
                frames_FHW3 = to_frames(self._vae.decode(latents_CTHW))
                renders.append(Render(asked[place], frames_FHW3, look(frames_FHW3)))
        return renders

    def _noise(self, size: Bucket, seed: int, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + place)
        return standard_noise((self.model.in_channels, *size.latent_shape), generator)

    def _denoise(
        self, captions: Sequence[str], noise_BCTHW: Tensor, starts: Sequence[Scene] | None, size: Bucket
    ) -> Tensor:
        latents_BCTHW = noise_BCTHW.to(self._device)
        if starts is not None:
            latents_BCTHW[:, :, :1] = torch.stack([self._first_latent(scene, size) for scene in starts])
        prompt = self._text(self._encoder.encode(captions))
        negative = self._text([self._negative] * len(captions))
        with self._compute():
            return denoise(
                self.model,
                latents_BCTHW,
                inference_sigmas(NUM_STEPS, self._shift),
                prompt,
                guidance=Guidance(GUIDANCE, negative),
                num_cond_latents=0 if starts is None else 1,
            )

    def _first_latent(self, scene: Scene, size: Bucket) -> Tensor:
        picture_HW3 = torch.from_numpy(render(scene, size.width, size.height, size.num_frames)[0])
        return self._vae.encode([picture_HW3.permute(2, 0, 1)[:, None]])

    def _text(self, features: Sequence[TextFeatures]) -> TextCondition:
        texts, masks = zip(*(one.padded() for one in features), strict=True)
        return TextCondition(torch.stack(texts).to(self._device), torch.stack(masks).to(self._device))


def shares(renders: Sequence[Render]) -> dict[str, float]:
    """Share of renders that show each name as asked, and all four at once."""
    rows = [one.right for one in renders]
    by_field = {field: sum(row[field] for row in rows) / len(rows) for field in FIELDS}
    return by_field | {"all": sum(all(row.values()) for row in rows) / len(rows)}
