"""The form of a preview becomes a config and the words of a command, or is refused and leaves nothing."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from longcat_tune.cli import build_app
from longcat_tune.config.load import load_run_config
from tests.server.previews import FORM, folders, submit, submitted, upload
from tests.server.renders import make_lora, make_run
from tests.server.web import make_client


def parsed(argv):
    """What the command line makes of the words of a job."""
    group = typer.main.get_command(build_app(argv))
    return group.commands["validate"].make_context("validate", list(argv[1:])).params


def test_a_form_becomes_a_config_and_a_job(tmp_path):
    client = make_client(tmp_path)
    folder, config, argv = submitted(client, tmp_path)
    assert config == {
        "model_flavour": "tiny",
        "memory_plan": "auto",
        "validation_negative_prompt": "blur",
        "validation_resolution": ["64x80"],
        "validation_num_video_frames": 9,
        "validation_num_inference_steps": 20,
        "validation_guidance": 3.5,
        "validation_seed": 7,
        "validation_preview": True,
        "validation_preview_steps": 2,
        "output_dir": f".longcat-tune/previews/{folder.name}/results",
        "data_backend_config": "../texts.json",
    }
    [job] = client.app.state.jobs.list()
    assert (job.kind, job.state, list(job.argv)) == ("validate", "queued", argv)
    place = f".longcat-tune/previews/{folder.name}/config.json"
    assert argv == ["validate", "--config", place, "--prompt", FORM["prompt"]]


def test_the_tool_takes_what_is_written(tmp_path):
    folder, _, argv = submitted(make_client(tmp_path), tmp_path, prompt="--help", lora="", strength="")
    config = load_run_config(folder / "config.json", {})
    assert config.validation.validation_resolution == ((64, 80),)
    assert config.data.data_backend_config == Path("../texts.json")
    [entry] = json.loads((folder.parent / "texts.json").read_text())
    assert (entry["dataset_type"], entry["cache_dir"]) == ("text_embeds", ".longcat-tune/previews/texts")
    params = parsed(argv)
    assert (params["prompt"], params["lora"], params["image"]) == (["--help"], (), None)


def test_the_printed_command_is_the_job_quoted_for_a_shell(tmp_path):
    make_lora(tmp_path / "my loras", "a:0.5.safetensors")
    client = make_client(tmp_path)
    changes = {"lora": "my loras/a:0.5.safetensors", "strength": "0.80", "start": upload(client)}
    folder, _, argv = submitted(client, tmp_path, **changes)
    [printed] = re.findall(
        r'<pre class="log" tabindex="0" aria-label="Command">(longcat-tune .*?)</pre>',
        client.get("/preview").text,
    )
    words = shlex.split(html.unescape(printed))
    assert words == ["longcat-tune", *argv]
    params = parsed(argv)
    assert params["lora"] == ["my loras/a:0.5.safetensors:0.8"]
    assert params["prompt"] == [FORM["prompt"]]
    assert (tmp_path / params["image"]).read_bytes() == (folder / "start.png").read_bytes()


def test_several_loras_are_applied_together(tmp_path):
    make_lora(tmp_path / "runs" / "dog" / "results" / "checkpoint-000010")
    make_lora(tmp_path, "b.safetensors")
    loras = {
        "lora": ["runs/dog/results/checkpoint-000010", "", "b.safetensors"],
        "strength": ["", "3", "-0.25"],
    }
    _, _, argv = submitted(make_client(tmp_path), tmp_path, **loras)
    assert parsed(argv)["lora"] == ["runs/dog/results/checkpoint-000010:1", "b.safetensors:-0.25"]


def test_the_base_of_a_run_brings_its_model_memory_and_rate(tmp_path):
    results = make_run(tmp_path)
    written = {
        "model_flavour": "tiny",
        "base_model_precision": "int8-quanto",
        "musubi_blocks_to_swap": 1,
        "framerate": 15,
        "flow_schedule_shift": 7.0,
        "learning_rate": 0.5,
        "lora_rank": 64,
        "data_backend_config": "nowhere.json",
        "output_dir": "elsewhere",
        "validation_prompt_library": True,
        "validation_lora": "nowhere.safetensors",
        "validation_guidance": 9,
    }
    (results.parent / "config.json").write_text(json.dumps(written))
    _, config, _ = submitted(make_client(tmp_path), tmp_path, base="run:dog")
    taken = {
        "model_flavour",
        "base_model_precision",
        "musubi_blocks_to_swap",
        "framerate",
        "flow_schedule_shift",
    }
    assert {key: config[key] for key in taken} == {key: written[key] for key in taken}
    assert config["validation_guidance"] == 3.5
    dropped = {"learning_rate", "lora_rank", "validation_prompt_library", "validation_lora", "memory_plan"}
    assert not dropped & config.keys()


@pytest.mark.parametrize(
    ("model", "written"),
    [("models/mine", "models/mine"), ("owner/name", "owner/name"), ("owner/Name-1.3_b", "owner/Name-1.3_b")],
)
def test_a_model_is_a_folder_or_an_id_on_the_hub(tmp_path, model, written):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    _, config, _ = submitted(make_client(tmp_path), tmp_path, base="model", model=model)
    assert config["pretrained_model_name_or_path"] == written


def test_a_folder_of_another_root_is_no_id_on_the_hub(tmp_path):
    home, weights = tmp_path / "home", (tmp_path / "weights").resolve()
    (weights / "mine").mkdir(parents=True)
    client = make_client(home, roots=(home.resolve(), weights))
    _, config, _ = submitted(client, home, base="model", model="weights/mine")
    assert config["pretrained_model_name_or_path"] == str(weights / "mine")


def test_an_empty_seed_is_chosen_and_told(tmp_path):
    client = make_client(tmp_path)
    seeds = {submitted(client, tmp_path, seed="")[1]["validation_seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(str(seed) in client.get("/preview").text for seed in seeds)


BAD = {
    "no prompt": {"prompt": " \r\n "},
    "a prompt with NUL": {"prompt": "a\0b"},
    "a prompt that is too long": {"prompt": "x" * 4001},
    "a base of no kind": {"base": "../../etc"},
    "no base": {"base": ""},
    "a run that is none": {"base": "run:cat"},
    "a run that leads elsewhere": {"base": "run:../.."},
    "a size off the grid": {"width": "50"},
    "no width": {"width": ""},
    "frames off the grid": {"frames": "10"},
    "words for a number": {"steps": "many"},
    "no steps": {"steps": "0"},
    "a guidance that is none": {"guidance": "nan"},
    "a negative guidance": {"guidance": "-1"},
    "a seed that is too large": {"seed": str(2**32)},
    "a lora that is not there": {"lora": "nothing.safetensors"},
    "a lora elsewhere": {"lora": "/etc/passwd"},
    "a lora beside the workspace": {"lora": "../secret.safetensors"},
    "a lora behind a symlink": {"lora": "link.safetensors"},
    "a lora of another kind": {"lora": "notes.txt"},
    "a strength that is none": {"lora": "a.safetensors", "strength": "strong"},
    "a strength beyond all": {"lora": "a.safetensors", "strength": "1e9"},
    "a strength that is no number": {"lora": "a.safetensors", "strength": "nan"},
    "too many loras": {"lora": ["a.safetensors"] * 9},
    "a start that is none": {"start": "a" * 32},
    "a start elsewhere": {"start": "../../secret"},
    "a start of no preview": {"start": "20260101-000000-123456abcd"},
    "a model elsewhere": {"base": "model", "model": "/etc"},
    "a model beside": {"base": "model", "model": "../.."},
    "a model behind a symlink": {"base": "model", "model": "models/link"},
    "no model": {"base": "model", "model": ""},
}


@pytest.mark.parametrize("name", BAD)
def test_a_form_that_will_not_do_leaves_nothing(tmp_path, name):
    home = tmp_path / "home"
    make_lora(home, "a.safetensors")
    make_lora(home, "notes.txt")
    secret = make_lora(tmp_path, "secret.safetensors")
    (home / "link.safetensors").symlink_to(secret)
    (home / "models").mkdir()
    (home / "models" / "link").symlink_to(tmp_path)
    client = make_client(home)
    reply = client.post("/preview", data=FORM | BAD[name], headers={"accept": "application/json"})
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.json()["error"]
    assert str(tmp_path) not in reply.text
    assert folders(home) == []
    assert client.app.state.jobs.list() == ()


def test_what_the_schema_refuses_is_told_in_its_words(tmp_path):
    reply = submit(make_client(tmp_path), frames="50", width="100")
    assert reply.status_code == 422
    assert "validation_num_video_frames (50)" in reply.text
    assert "use 49 or 53" in reply.text
    assert "validation_resolution" in reply.text
    assert "command line" not in reply.text
    assert "--validation" not in reply.text


@pytest.mark.parametrize("body", [b"\xff\xfe", b"a" * 1000, b"prompt=%zz&&&=", b"{}"])
@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data", "application/json"]
)
def test_a_malformed_form_is_refused(tmp_path, body, kind):
    reply = make_client(tmp_path).post("/preview", content=body, headers={"content-type": kind})
    assert 400 <= reply.status_code < 500
    assert folders(tmp_path) == []


def test_the_form_offers_runs_with_their_values_and_their_loras(tmp_path):
    results = make_run(tmp_path)
    written = {
        "validation_resolution": "480x832,64x64",
        "validation_num_video_frames": 49,
        "validation_guidance": 0,
        "validation_prompt": 'a "dog"',
    }
    (results.parent / "config.json").write_text(json.dumps(written))
    make_lora(results / "checkpoint-000500", "lora.official.safetensors")
    make_run(tmp_path, "broken")
    (tmp_path / "runs" / "broken" / "config.json").write_text("{")
    text = make_client(tmp_path).get("/preview?run=dog&lora=runs/dog/results/x.safetensors").text
    [values] = re.findall(r'value="run:dog" data-values="([^"]*)" selected', text)
    expected = {"width": "480", "height": "832", "frames": "49", "guidance": "0", "steps": "40"}
    assert expected.items() <= json.loads(html.unescape(values)).items()
    assert 'name="frames" type="number" min="1" step="4" required value="49"' in text
    assert "a &#34;dog&#34;</textarea>" in text
    assert (
        '<option value="runs/dog/results/checkpoint-000500/lora.official.safetensors">dog, Step 500' in text
    )
    assert 'name="lora" value="runs/dog/results/x.safetensors"' in text
    assert "run:broken" not in text
    assert "<article" not in text
