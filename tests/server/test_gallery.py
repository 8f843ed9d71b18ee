"""The gallery of a run: renders by step and by prompt, beside the start; LoRA files in every format."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

import longcat_tune
from longcat_tune.server import gallery_loras
from longcat_tune.server.gallery_loras import FILE_NAMES, read_checkpoints
from longcat_tune.server.gallery_records import read_gallery
from longcat_tune.server.tool import error_in
from tests.server.renders import make_lora, make_renders, make_run, video_record
from tests.server.web import TOKEN, make_client

CONVERTER = """
import pathlib, sys
lora, convert, source, target, to, form = sys.argv[1:]
assert (lora, convert, to) == ("lora", "convert", "--to")
if pathlib.Path(source).read_bytes() == b"dora":
    sys.exit(f"12:00:00 reading\\nerror: {source}: a DoRA cannot be written as {form}")
path = pathlib.Path(target)
assert not path.exists()
path.parent.mkdir(parents=True, exist_ok=True)
path.write_bytes(f"{form} of ".encode() + pathlib.Path(source).read_bytes())
"""
"""In place of the command line."""


@pytest.fixture
def results(tmp_path):
    return make_run(tmp_path)


def converting_client(home, **changes):
    return make_client(home, command=(sys.executable, "-c", CONVERTER), **changes)


def trained(results):
    """Base, two steps with averaged weights at the last, and a LoRA file."""
    make_renders(results, "step_000000", video_record(), video_record("cat"))
    make_renders(results, "step_000010", video_record(), video_record("cat"))
    make_renders(results, "step_000100", video_record())
    make_renders(results, "step_000100/ema", video_record(numbers={"sharpness": 777.0}))
    make_renders(results, "my_lora@0.5", video_record())
    return results


def names(gallery):
    return [one.name for one in gallery.weights]


def test_weights_come_in_the_order_of_training(results):
    trained(results)
    make_renders(results, "base", video_record())
    order = ["base", "step_000000", "step_000010", "step_000100", "my_lora@0.5"]
    gallery = read_gallery(results)
    assert names(gallery) == order
    assert [one.kind for one in gallery.weights] == ["base", "start", "step", "step", "lora"]
    assert [one.step for one in gallery.weights] == [None, 0, 10, 100, None]


def test_the_last_step_is_shown_first(results):
    assert read_gallery(trained(results)).named(None).name == "step_000100"


def test_a_render_stands_beside_what_the_model_did_before(results):
    gallery = read_gallery(trained(results))
    shown = gallery.beside_base("key-prompt", gallery.named("step_000100"))
    assert [(one.weights.name, one.averaged) for one in shown] == [
        ("step_000000", False),
        ("step_000100", False),
        ("step_000100", True),
    ]
    alone = gallery.beside_base("key-prompt", gallery.named("step_000000"))
    assert [one.weights.name for one in alone] == ["step_000000"]


def test_averaged_renders_alone_are_shown(results):
    make_renders(results, "step_000010/ema", video_record())
    [weights] = read_gallery(results).weights
    assert not weights.clips
    assert weights.all_clips["key-prompt"].video == "validation/step_000010/ema/prompt_64x64_42.mp4"


def test_a_deleted_render_is_left_out(results):
    folder = make_renders(results, "step_000010", video_record(), video_record("cat"))
    (folder / "cat_64x64_42.mp4").unlink()
    [weights] = read_gallery(results).weights
    assert [*weights.clips] == ["key-prompt"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"videos": 3}', '{"videos": [{}], "failures": []}', "\0"]
)
def test_a_record_that_is_none_hides_only_its_folder(results, content):
    make_renders(results, "step_000010", video_record())
    (make_renders(results, "step_000020", video_record()) / "renders.json").write_text(content)
    assert names(read_gallery(results)) == ["step_000010"]


def test_a_record_reaches_no_other_folder(results):
    make_lora(results, "prompt_64x64_42.mp4")
    make_lora(results, "prompt_64x64_42.png")
    folder = make_renders(results, "step_000010", video_record())
    text = (folder / "renders.json").read_text()
    (folder / "renders.json").write_text(text.replace("prompt_64x64_42", "../../prompt_64x64_42"))
    [clip] = read_gallery(results).requests.values()
    assert clip.video == "validation/step_000010/prompt_64x64_42.mp4"


def test_folders_that_a_symlink_leads_elsewhere_are_not_shown(tmp_path, results):
    other = make_run(tmp_path, "other")
    make_renders(other, "step_000010", video_record("secret"))
    (results / "validation").mkdir()
    (results / "validation" / "step_000010").symlink_to(other / "validation" / "step_000010")
    assert names(read_gallery(results)) == []
    (results / "validation" / "step_000010").unlink()
    (results / "validation").rmdir()
    (results / "validation").symlink_to(other / "validation")
    assert names(read_gallery(results)) == []


def test_the_page_plays_both_renders_and_tells_their_numbers(tmp_path, results):
    trained(results)
    text = make_client(tmp_path).get("/runs/dog/gallery").text
    for place in ("step_000000", "step_000100", "step_000100/ema"):
        assert f'<video src="/runs/dog/files/validation/{place}/prompt_64x64_42.mp4?v=' in text
    assert "step_000010" in text  # among the choices
    assert 'src="/runs/dog/files/validation/step_000010' not in text
    for told in ("0.987", "12.5", "777", "seed 42", "a prompt on a beach", "Step 100, averaged weights"):
        assert told in text


def test_other_weights_are_chosen_by_address_and_by_neighbour(tmp_path, results):
    trained(results)
    text = make_client(tmp_path).get("/runs/dog/gallery?weights=step_000010").text
    assert "validation/step_000010/cat_64x64_42.mp4" in text
    assert 'id="earlier" href="?weights=step_000000"' in text
    assert 'id="later" href="?weights=step_000100"' in text


def test_one_prompt_is_shown_over_all_steps(tmp_path, results):
    trained(results)
    text = make_client(tmp_path).get("/runs/dog/gallery?view=requests&key=key-cat").text
    assert "validation/step_000000/cat_64x64_42.mp4" in text
    assert "validation/step_000010/cat_64x64_42.mp4" in text
    assert "/prompt_64x64_42.mp4" not in text


def test_contact_sheets_are_shown(tmp_path, results):
    trained(results)
    make_lora(results / "validation", "contact_sheet.png")
    make_lora(results / "validation" / "step_000100", "compare.png")
    text = make_client(tmp_path).get("/runs/dog/gallery?view=sheets").text
    for name in (
        "contact_sheet.png",
        "step_000100/compare.png",
        "step_000100/grid.png",
        "step_000010/grid.png",
    ):
        assert f'src="/runs/dog/files/validation/{name}"' in text


def test_a_failed_render_tells_why_and_from_afar_without_paths(tmp_path, results):
    reason = f"no memory for {results}/x; lower the size"
    make_renders(results, "step_000010", failures=[{"name": "dog_64x64_42", "reason": reason}])
    here = make_client(tmp_path).get("/runs/dog/gallery")
    assert reason in here.text
    remote = make_client(tmp_path, host="0.0.0.0", token=TOKEN)
    there = remote.get("/runs/dog/gallery", headers={"authorization": f"Bearer {TOKEN}"})
    assert "lower the size" in there.text
    assert str(tmp_path) not in there.text


def test_texts_of_a_record_are_escaped(tmp_path, results):
    evil = "<script>alert(1)</script>"
    make_renders(results, "step_000010", video_record(name="x", prompt=evil, details=[evil], key='"><b>'))
    for view in ("steps", "requests"):
        text = make_client(tmp_path).get(f"/runs/dog/gallery?view={view}").text
        assert "&lt;script&gt;" in text
        assert "<script>" not in text
        assert "><b>" not in text


@pytest.mark.parametrize("view", ["steps", "requests", "sheets", "files"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_view_works_before_anything_is_there(tmp_path, results, view, language):
    results.rmdir()
    client = make_client(tmp_path)
    reply = client.get(f"/runs/dog/gallery?view={view}", headers={"accept-language": language})
    assert reply.status_code == 200
    assert 'class="empty"' in reply.text


@pytest.mark.parametrize(
    "address",
    ["cat/gallery", "dog/gallery?weights=../..", "dog/gallery?view=x", "dog/gallery?view=requests&key=x"],
)
def test_what_is_not_there_is_refused(tmp_path, results, address):
    trained(results)
    assert make_client(tmp_path).get(f"/runs/{address}").status_code in {404, 422}


def test_an_open_page_hears_of_new_renders_only(tmp_path, results):
    make_renders(results, "step_000000", video_record())
    client = make_client(tmp_path)
    stamp = read_gallery(results).stamp
    assert f"gallery/news?stamp={stamp}" in client.get("/runs/dog/gallery").text
    assert client.get(f"/runs/dog/gallery/news?stamp={stamp}").status_code == 204
    make_renders(results, "step_000010", video_record())
    news = client.get(f"/runs/dog/gallery/news?stamp={stamp}")
    assert news.status_code == 200
    assert "/runs/dog/gallery" in news.text


def test_checkpoints_are_listed_with_every_format_that_is_there(results):
    make_lora(results)
    make_lora(results / "checkpoint-000500")
    make_lora(results / "checkpoint-001000", "lora.official.safetensors")
    make_lora(results / "checkpoint-000700.unfinished")
    make_lora(results / "exports" / "checkpoint-000100", "lora.comfyui.safetensors")
    assert [(one.name, one.step, [*one.files], one.can_convert) for one in read_checkpoints(results)] == [
        ("last", None, ["peft"], True),
        ("checkpoint-001000", 1000, ["official"], True),
        ("checkpoint-000500", 500, ["peft"], True),
        ("checkpoint-000100", 100, ["comfyui"], False),
    ]


def test_a_checkpoint_that_its_run_removes_while_it_is_looked_at_is_left_out(results, monkeypatch):
    make_lora(results)
    make_lora(results / "checkpoint-000500")
    is_own = gallery_loras._is_own

    def removed_next(path, folder):
        found = is_own(path, folder)
        if "checkpoint" in path.parent.name:
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(gallery_loras, "_is_own", removed_next)
    assert [one.name for one in read_checkpoints(results)] == ["last"]


def test_a_lora_that_a_symlink_leads_elsewhere_is_not_listed(tmp_path, results):
    secret = make_lora(tmp_path / "elsewhere")
    (results / "pytorch_lora_weights.safetensors").symlink_to(secret)
    (results / "checkpoint-000500").symlink_to(secret.parent)
    assert read_checkpoints(results) == ()


def test_names_of_formats_are_those_of_the_tool():
    source = Path(longcat_tune.__file__).parent / "checkpoint" / "lora_file.py"
    words = {one.value for one in ast.walk(ast.parse(source.read_text())) if isinstance(one, ast.Constant)}
    assert {*FILE_NAMES, *FILE_NAMES.values()} <= words


def test_a_missing_format_is_made_beside_the_checkpoint_and_downloaded(tmp_path, results):
    make_lora(results / "checkpoint-000500")
    client = converting_client(tmp_path)
    reply = client.post("/runs/dog/loras/checkpoint-000500/comfyui", headers={"hx-request": "true"})
    assert reply.status_code == 200
    path = "exports/checkpoint-000500/lora.comfyui.safetensors"
    assert f'href="/runs/dog/files/{path}" download' in reply.text
    made = client.get(f"/runs/dog/files/{path}")
    assert made.content == b"comfyui of weights"
    name = "dog-checkpoint-000500-lora.comfyui.safetensors"
    assert made.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert [path.name for path in (results / "checkpoint-000500").iterdir()] == [
        "pytorch_lora_weights.safetensors"
    ]


def test_a_format_that_is_there_is_not_made_again(tmp_path, results):
    make_lora(results)
    client = make_client(tmp_path)  # whose command fails
    assert client.post("/runs/dog/loras/last/peft").status_code == 303


def test_a_file_made_of_an_older_checkpoint_is_made_anew(tmp_path, results):
    source = make_lora(results)
    export = make_lora(results / "exports" / "last", "lora.comfyui.safetensors", b"old")
    os.utime(export, ns=(1, 1))
    assert [*read_checkpoints(results)[0].files] == ["peft"]
    converting_client(tmp_path).post("/runs/dog/loras/last/comfyui")
    assert export.read_bytes() == b"comfyui of " + source.read_bytes()
    assert [*read_checkpoints(results)[0].files] == ["peft", "comfyui"]


def test_why_a_format_cannot_be_made_is_told_in_the_tools_words(tmp_path, results):
    make_lora(results, content=b"dora")
    client = converting_client(tmp_path)
    reply = client.post("/runs/dog/loras/last/comfyui", headers={"accept": "application/json"})
    assert reply.status_code == 409
    source = results / "pytorch_lora_weights.safetensors"
    assert reply.json() == {"error": f"{source}: a DoRA cannot be written as comfyui"}


def test_from_afar_no_path_of_the_machine_is_told(tmp_path, results):
    make_lora(results, content=b"dora")
    client = converting_client(tmp_path, host="0.0.0.0", token=TOKEN)
    headers = {"accept": "application/json", "authorization": f"Bearer {TOKEN}"}
    text = client.post("/runs/dog/loras/last/comfyui", headers=headers).json()["error"]
    assert "a DoRA cannot be written as comfyui" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "address",
    [
        "last/gguf",
        "checkpoint-000009/peft",
        "..%2f..%2fother/peft",
        "exports/peft",
        "checkpoint-/peft",
        "%2e%2e/peft",
    ],
)
def test_only_checkpoints_and_known_formats_are_converted(tmp_path, results, address):
    make_lora(results)
    reply = make_client(tmp_path).post(f"/runs/dog/loras/{address}")
    assert 400 <= reply.status_code < 500
    assert not (results / "exports").exists()


def test_nothing_is_written_where_a_symlink_leads(tmp_path, results):
    make_lora(results)
    (tmp_path / "elsewhere").mkdir()
    (results / "exports").symlink_to(tmp_path / "elsewhere")
    assert converting_client(tmp_path).post("/runs/dog/loras/last/comfyui").status_code == 403
    assert not any((tmp_path / "elsewhere").iterdir())


def test_another_site_converts_nothing(tmp_path, results):
    make_lora(results)
    client = converting_client(tmp_path)
    evil = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert client.post("/runs/dog/loras/last/comfyui", headers=evil).status_code == 403
    assert not (results / "exports").exists()


def test_the_error_of_a_command_is_found_in_what_it_said():
    assert error_in("12:00:01 reading\nerror: no such file;\ntry another\n") == "no such file;\ntry another"
    assert error_in("Traceback ...\nKeyError: 'x'\n") == "Traceback ...\nKeyError: 'x'"
    assert "try it in a terminal" in error_in("")
