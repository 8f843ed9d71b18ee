"""An upload is refused early when it is bound to fail, and costs nothing when it fails at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longcat_tune.checkpoint.lora_file import LORA_FILE, LORA_FILES
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError, UserError
from longcat_tune.runs.hub import require_upload, upload_lora
from longcat_tune.runs.train import train
from tests.builders import make_clips, make_run, video_entry

HUB = {"push_to_hub": True, "hub_model_id": "me/my-lora"}


class StandIn:
    """A hub that remembers what it was asked for."""

    asked: list[tuple[str, dict[str, Any]]]
    error: BaseException | None = None

    def __init__(self) -> None:
        if self.error is not None:
            raise self.error

    def create_repo(self, repository: str, **keys: Any) -> None:
        self.asked.append((repository, keys))

    def file_exists(self, repository: str, name: str) -> bool:
        return (repository, name) == ("me/my-lora", "no.md")

    def upload_file(self, **keys: Any) -> None:
        self.asked.append(("file", keys))

    def upload_folder(self, **keys: Any) -> None:
        self.asked.append(("folder", keys))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(StandIn, "asked", [], raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    return StandIn


def run(folder: Path, **keys: Any) -> RunConfig:
    return make_run(folder, [video_entry(folder / "clips")], max_train_steps=1, **keys)


def test_a_finished_run_uploads_its_lora_to_a_private_repository(tmp_path: Path, hub: type[StandIn]) -> None:
    make_clips(tmp_path / "clips", 1)
    config = run(tmp_path, lora_format=["peft", "official"], **HUB)
    train(config, config_dir=tmp_path)
    (repository, how), (_, card), (_, folder) = hub.asked
    assert (repository, how) == ("me/my-lora", {"private": True, "exist_ok": True})
    assert b"base_model: meituan-longcat/LongCat-Video" in card["path_or_fileobj"]
    assert str(tmp_path).encode() not in card["path_or_fileobj"]
    assert folder["folder_path"] == config.output.output_dir
    assert folder["allow_patterns"] == [LORA_FILES["peft"], LORA_FILES["official"]]


def test_a_hub_that_is_not_there_loses_nothing_and_says_what_to_do(
    tmp_path: Path, hub: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clips(tmp_path / "clips", 1)
    config = run(tmp_path, **HUB)
    monkeypatch.setattr(hub, "error", ConnectionError("no route\nto the hub"))
    with pytest.raises(
        UserError, match=r"its LoRA is in .*out, but .* \(no route\); run the same command again"
    ):
        train(config, config_dir=tmp_path)
    out = config.output.output_dir
    assert (out / LORA_FILE).is_file()
    assert '"how": "finished"' in (out / "events.jsonl").read_text()
    monkeypatch.setattr(hub, "error", None)
    train(config, config_dir=tmp_path)
    assert [name for name, _ in hub.asked] == ["me/my-lora", "file", "folder"]


def test_the_client_s_own_errors_are_told(
    tmp_path: Path, hub: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import HTTPError

    monkeypatch.setattr(hub, "error", HTTPError("[Errno -2] Name or service not known"))
    with pytest.raises(UserError, match="Name or service not known"):
        upload_lora(run(tmp_path, **HUB))


def test_nothing_is_uploaded_unasked(tmp_path: Path, hub: type[StandIn]) -> None:
    upload_lora(run(tmp_path, hub_model_id="me/my-lora"))
    assert hub.asked == []


def test_what_is_bound_to_fail_is_told_before_the_run(
    tmp_path: Path, hub: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"hub_model_id \(null\) must name a repository"):
        run(tmp_path, push_to_hub=True)
    with pytest.raises(ConfigError, match=r"hub_model_id \(my lora\) is no name of a repository"):
        require_upload(run(tmp_path, push_to_hub=True, hub_model_id="my lora"))
    require_upload(run(tmp_path, **HUB))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="needs a login to the hub; run `hf auth login`"):
        require_upload(run(tmp_path, **HUB))
    require_upload(run(tmp_path))
