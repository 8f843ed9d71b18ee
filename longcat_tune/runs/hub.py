"""The last LoRA of a finished run, uploaded to the hub; whatever goes wrong there, the files are on disk."""

from __future__ import annotations

import logging

from longcat_tune.checkpoint.lora_file import LORA_FILES
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

CARD = "README.md"
BASE = "meituan-longcat/LongCat-Video"
"""The hub's name of the model; where the weights of this run lay is nobody's business."""


def require_upload(config: RunConfig) -> None:
    """Refuse an upload that is bound to fail, before hours of training count on it.

    Raises:
        ConfigError: nobody is logged in to the hub, or the name is none of a repository.
    """
    repository = _repository(config)
    if repository is None:
        return
    # Imported here: most runs upload nothing.
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        msg = f"hub_model_id ({repository}) is no name of a repository ({error}); write it like you/my-lora"
        raise ConfigError(msg) from error
    if get_token() is None:
        raise ConfigError(
            "push_to_hub (true) needs a login to the hub; run `hf auth login`, or set the environment "
            "variable HF_TOKEN"
        )


def upload_lora(config: RunConfig) -> None:
    """Upload the LoRA files of output_dir, if the config asks for it; a new repository is made private.

    Args:
        config: of a run that is finished.

    Raises:
        UserError: the hub cannot be reached or refused; the files are complete in output_dir.
    """
    repository = _repository(config)
    if repository is None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    output_dir = config.output.output_dir
    files = [LORA_FILES[form] for form in config.lora.lora_format]
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        if not api.file_exists(repository, CARD):
            api.upload_file(path_or_fileobj=_card(), path_in_repo=CARD, repo_id=repository)
        api.upload_folder(repo_id=repository, folder_path=output_dir, allow_patterns=files)
    # OSError: what the hub answers; HTTPError: what the client raises where it finds no hub.
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"push_to_hub: the run is finished and its LoRA is in {output_dir}, but it could not be uploaded "
            f"to {repository} ({reason}); run the same command again, or `hf upload {repository} "
            f"{output_dir / files[0]}`"
        ) from error
    logger.info("Uploaded %s to %s", ", ".join(files), repository)


def _repository(config: RunConfig) -> str | None:
    """Where to upload to; None: nowhere."""
    return config.output.hub_model_id if config.output.push_to_hub else None


def _card() -> bytes:
    """What the hub shows of a new repository; written once, so that it may be edited there."""
    head = ["---", f"base_model: {BASE}", "tags: [lora, text-to-video, longcat-video]", "---"]
    text = "LoRA of LongCat-Video, trained with longcat-tune. Rank, alpha and layers stand in the files."
    return "\n".join([*head, "", text, ""]).encode()
