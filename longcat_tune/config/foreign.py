"""Keys that are not ours: other spellings of our own, and SimpleTuner's that have no meaning here.

Data and one lookup; config.load decides what becomes a warning and what an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Consequence:
    """A foreign key that would have changed the run.

    Attributes:
        instead: what to do here; ends the sentence "does not exist here; ...".
        harmless: values with which it changes nothing; null, false, none and the empty text never do.
    """

    instead: str
    harmless: tuple[object, ...] = ()

    def matters(self, value: object) -> bool:
        """Whether the value would have changed the run."""
        harmless = {"none", "null", "false", "", "[]", "{}", *(str(one).lower() for one in self.harmless)}
        return str(value).lower() not in harmless


@dataclass(frozen=True, slots=True)
class ForeignKeys:
    """What one file may hold besides our keys.

    Attributes:
        aliases: other spellings of our keys.
        consequences: keys whose absence would change the result.
        names_file: package file that lists the keys without effect, one a line.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    consequences: Mapping[str, Consequence] = field(default_factory=dict)
    names_file: str | None = None

    def names(self) -> frozenset[str]:
        """Every key of SimpleTuner that has no meaning here."""
        listed = _names(self.names_file) if self.names_file else frozenset()
        return listed | self.consequences.keys()


@cache
def _names(file: str) -> frozenset[str]:
    return frozenset(files(__package__).joinpath(file).read_text(encoding="utf-8").split())


_BY_LAUNCHER = Consequence(
    "the launcher starts the processes: torchrun --nproc_per_node N -m longcat_tune train ...; remove it",
    harmless=(0, 1),
)
_NOT_TRAINED_WITH = Consequence(
    "the loss here is the model's own, without additions; remove it", harmless=(0,)
)
_IN_DATA_FILE = "set it in the entries of the data file"
_OFFLOAD = "use musubi_blocks_to_swap or enable_group_offload"

CONFIG_KEYS = ForeignKeys(
    aliases={
        "attention_mechanism": "attention_implementation",
        "validation_steps": "validation_step_interval",
        "checkpointing_steps": "checkpoint_step_interval",
        "save_total_limit": "checkpoints_total_limit",
        "text_encoder_precision": "text_encoder_1_precision",
        "text_encoder_model_name_or_path": "pretrained_text_encoder_model_name_or_path",
        "peft_lora_target_modules": "lora_target",
    },
    names_file="foreign_keys.txt",
    consequences={
        # Where the weights come from
        "revision": Consequence(
            "download that revision and give its folder as pretrained_model_name_or_path"
        ),
        "variant": Consequence("give the folder of those weights as pretrained_model_name_or_path"),
        "pretrained_transformer_subfolder": Consequence(
            "give the folder itself as pretrained_transformer_model_name_or_path",
            harmless=("transformer", "dit"),
        ),
        "vae_path": Consequence("use pretrained_vae_model_name_or_path"),
        "pretrained_t5_model_name_or_path": Consequence("use pretrained_text_encoder_model_name_or_path"),
        "qwen_text_encoder_model_name_or_path": Consequence("use pretrained_text_encoder_model_name_or_path"),
        "tokenizer_max_length": Consequence("captions always have 512 tokens; remove it", harmless=(512,)),
        # Precision and memory
        "quantize_activations": Consequence("only weights are quantized; use base_model_precision alone"),
        "quantization_config": Consequence("use base_model_precision"),
        "ramtorch": Consequence(_OFFLOAD),
        "gradient_checkpointing_backend": Consequence(
            "use gradient_checkpointing_offload", harmless=("torch", "torch-ffn")
        ),
        "gradient_checkpointing_offload_attention": Consequence("use gradient_checkpointing_offload"),
        "fsdp_enable": Consequence(
            "start with accelerate launch --use_fsdp --fsdp_version 2, or " + _OFFLOAD
        ),
        "deepspeed_config": Consequence(_OFFLOAD),
        "context_parallel_size": Consequence(
            "every process computes whole clips; remove it", harmless=(0, 1)
        ),
        "num_processes": _BY_LAUNCHER,
        "num_machines": _BY_LAUNCHER,
        # What is trained
        "lora_type": Consequence("only standard LoRA is trained; remove it", harmless=("standard",)),
        "peft_lora_mode": Consequence("only standard LoRA is trained; remove it", harmless=("standard",)),
        "lora_init_type": Consequence(
            "adapters start as PEFT starts them; remove it", harmless=("default", "true")
        ),
        "lora_initialisation_style": Consequence(
            "adapters start as PEFT starts them; remove it", harmless=("default", "true")
        ),
        "slider_lora_target": Consequence("use lora_target"),
        "train_text_encoder": Consequence("only the transformer's adapter is trained; remove it"),
        "controlnet": Consequence("use a conditioning dataset with is_i2v to condition on images"),
        "control": Consequence("use a conditioning dataset with is_i2v to condition on images"),
        # The loss and the noise
        "offset_noise": Consequence("the model's flow has plain noise; remove it"),
        "input_perturbation": Consequence("the model's flow has plain noise; remove it", harmless=(0, 0.0)),
        "flow_schedule_auto_shift": Consequence(
            "use flow_schedule_shift; the model's own shift is 12 at every size"
        ),
        "flow_cubic_schedule_weights": Consequence("use flow_sigmoid_scale or another flow_ key"),
        "flow_custom_timesteps": Consequence("use flow_sigmoid_scale or another flow_ key"),
        "flow_beta_schedule_alpha": Consequence(
            "the beta density is Beta(2, 2); remove it", harmless=(2, 2.0)
        ),
        "flow_beta_schedule_beta": Consequence(
            "the beta density is Beta(2, 2); remove it", harmless=(2, 2.0)
        ),
        "scheduled_sampling_max_step_offset": _NOT_TRAINED_WITH,
        "diffusion_blocks_config": _NOT_TRAINED_WITH,
        "tread_config": _NOT_TRAINED_WITH,
        "distillation_method": Consequence("adapters are trained on clips, not on a teacher; remove it"),
        **dict.fromkeys(
            (
                "crepa_enabled",
                "diff2flow_enabled",
                "internal_guidance_enabled",
                "irepa_enabled",
                "layersync_enabled",
                "mixflow_enabled",
                "nextlat_enabled",
                "twinflow_enabled",
                "urepa_enabled",
                "xm_enabled",
            ),
            _NOT_TRAINED_WITH,
        ),
        # The optimizer
        "optimizer_config": Consequence("use adam_beta1, adam_beta2, adam_weight_decay and adam_epsilon"),
        "optimizer_beta1": Consequence("use adam_beta1"),
        "optimizer_beta2": Consequence("use adam_beta2"),
        "lr_scale": Consequence("multiply learning_rate yourself"),
        "lr_scale_sqrt": Consequence("multiply learning_rate yourself"),
        # The data
        "instance_prompt": Consequence(_IN_DATA_FILE),
        "prepend_instance_prompt": Consequence("write the prompt into the captions"),
        "only_instance_prompt": Consequence("set caption_strategy to instanceprompt in the data file"),
        "disable_multiline_split": Consequence(_IN_DATA_FILE),
        "minimum_image_size": Consequence(_IN_DATA_FILE, harmless=(0, 0.0)),
        "max_upscale_threshold": Consequence(_IN_DATA_FILE),
        "maximum_image_size": Consequence("clips are always brought to the size of their bucket; remove it"),
        "target_downsample_size": Consequence(
            "clips are always brought to the size of their bucket; remove it"
        ),
        "aspect_bucket_rounding": Consequence(
            "aspect ratios are rounded to 2 decimals; remove it", harmless=(2,)
        ),
        "enable_nsfw_check": Consequence("sort the clips out before training"),
        # What a run leaves
        "checkpoint_epoch_interval": Consequence("use checkpoint_step_interval"),
        "checkpointing_rolling_steps": Consequence("use checkpoint_step_interval", harmless=(0,)),
        "validation_disable": Consequence(
            "set validation_step_interval to 0 and validation_on_startup to false"
        ),
    },
)

_OWN_FIRST_FRAME = "set is_i2v to true without conditioning_data: the clip's own first frame is taken"
_SCHEDULE = "use start_step and end_step"

DATASET_KEYS = ForeignKeys(
    aliases={
        "disable": "disabled",
        "parquet": "caption_table",
        "csv": "caption_table",
        "jsonl": "caption_table",
    },
    names_file="foreign_dataset_keys.txt",
    consequences={
        "prepend_instance_prompt": Consequence("write the prompt into the captions"),
        "only_instance_prompt": Consequence("set caption_strategy to instanceprompt"),
        "maximum_image_size": Consequence("clips are always brought to the size of their bucket; remove it"),
        "target_downsample_size": Consequence(
            "clips are always brought to the size of their bucket; remove it"
        ),
        "start_epoch": Consequence(_SCHEDULE, harmless=(0, 1)),
        "end_epoch": Consequence(_SCHEDULE),
        "train_batch_size": Consequence("set train_batch_size in config.json"),
        "timestep_sampling_offset": Consequence(
            "noise levels are drawn alike for all datasets; remove it", (0, 0.0)
        ),
        "conditioning": Consequence(_OWN_FIRST_FRAME),
        "conditioning_type": Consequence(
            "conditioning images are start frames only; remove it",
            harmless=("reference_strict", "reference_loose", "i2v_first_frame"),
        ),
        "caption_filter_list": Consequence("edit the captions"),
        "csv_file": Consequence('set caption_table to {"path": ...} with caption_strategy csv'),
        "csv_caption_column": Consequence("put it as caption_column inside caption_table"),
        "num_frames": Consequence("put it inside video"),
        "bucket_strategy": Consequence("put it inside video"),
        "frame_interval": Consequence("put it inside video"),
    },
)

NESTED_KEYS: Mapping[str, ForeignKeys] = {
    "video": ForeignKeys(),
    "caption_table": ForeignKeys(names_file="foreign_caption_table_keys.txt"),
    "caption_shuffle": ForeignKeys(),
}
"""For each object inside an entry of the data file, what else it may hold."""
