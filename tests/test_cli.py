"""The command line: options from the schema, one place for errors, exit codes, and help without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import longcat_tune
from longcat_tune import __version__
from longcat_tune.checkpoint.lora_file import LoraWeights, write_lora
from longcat_tune.cli import main
from longcat_tune.commands import CONFIG_COMMANDS
from longcat_tune.config.run import keys, sections
from longcat_tune.errors import DataError, InterruptedRunError
from longcat_tune.runs.machine import OtherMachine

RUNS = {
    "train": ("train", "train"),
    "cache-latents": ("cache", "cache_latents"),
    "validate": ("validate", "validate"),
    "check": ("check", "check"),
    "init": ("init", "init"),
    "cache status": ("cache_commands", "status"),
    "cache verify": ("cache_commands", "verify"),
    "cache prune": ("cache_commands", "prune"),
    "cache decode": ("cache_decode", "decode"),
}
"""For each command, the module of runs and its function."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr("longcat_tune.log.set_up", lambda **_: None)


def record(monkeypatch, command: str, *, error: BaseException | None = None) -> list[tuple]:
    """Stand in for a function of runs: keep what it is called with, then raise."""
    calls: list[tuple] = []

    def run(*args: object, **options: object) -> None:
        calls.append((*args, options))
        if error is not None:
            raise error

    name, function = RUNS[command]
    module = ModuleType(name)
    setattr(module, function, run)
    monkeypatch.setitem(sys.modules, f"longcat_tune.runs.{name}", module)
    return calls


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--lora_rank", "16"], "lora_rank", 16),
        (["--lora-rank=16"], "lora_rank", 16),
        (["--gradient_checkpointing"], "gradient_checkpointing", True),
        (["--no-gradient_checkpointing"], "gradient_checkpointing", False),
        (["--no-gradient-checkpointing"], "gradient_checkpointing", False),
        (["--group_offload_type", "block_level"], "group_offload_type", "block_level"),
        (["--attention-mechanism", "math"], "attention_implementation", "math"),
        (["--validation_resolution", "832x480,480x832"], "validation_resolution", ["832x480", "480x832"]),
        (["--lora_rank", "4", "--lora_rank", "5"], "lora_rank", 5),
    ],
)
def test_a_key_is_an_option(monkeypatch, options, key, value):
    [call] = [record(monkeypatch, "check")]
    assert main(["check", *options]) == 0
    assert call[0][0].flat()[key] == value


@pytest.mark.parametrize("command", CONFIG_COMMANDS)
def test_every_key_is_in_the_help_of_every_command_by_section(capsys, command):
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert [key for key in keys() if f"--{key}" not in text] == []
    assert [name for name in sections() if f"{name.capitalize()} keys:" not in text] == []


@pytest.mark.parametrize("command", CONFIG_COMMANDS)
def test_the_file_and_its_folder_are_handed_over(monkeypatch, tmp_path, command):
    calls = record(monkeypatch, command)
    path = tmp_path / "config.json"
    path.write_text('{"lora_rank": 3, "seed": 1}', encoding="utf-8")
    assert main([*command.split(), "--config", str(path), "--seed", "2"]) == 0
    [(config, options)] = calls
    assert (config.lora.lora_rank, config.training.seed, options["config_dir"]) == (3, 2, tmp_path)


def test_commands_hand_over_their_own_options(monkeypatch):
    validate, check, init = (record(monkeypatch, command) for command in ("validate", "check", "init"))
    words = ["--lora", "a", "--lora", "b:0.8", "--prompt", "one", "--prompt", "two", "--image", "i.png"]
    words += ["--segments", "3"]
    assert main(["validate", *words]) == main(["check", "--json", "--host-memory", "64G"]) == 0
    assert main(["init", "clips", "--i2v", "--regularisation_dir", "known", "--model_flavour", "tiny"]) == 0
    assert validate[0][1] == {
        "config_dir": Path(),
        "loras": [(Path("a"), 1.0), (Path("b"), 0.8)],
        "prompts": ["one", "two"],
        "image": Path("i.png"),
        "video": None,
        "segments": 3,
    }
    told = {"as_json": True, "clips": False, "other": OtherMachine(host_memory="64G")}
    assert check[0][1] == {"config_dir": Path(), **told}
    options = {"i2v": True, "demo": False, "regularisation_dir": Path("known"), "flavour": "tiny"}
    assert init == [(Path("clips"), options)]


def test_cache_commands_hand_over_their_own_options(monkeypatch):
    calls = {}
    for words in ("status --json", "verify --json --remove", "prune --yes", "decode a/b.mp4 --out c.mp4"):
        command = f"cache {words.split()[0]}"
        recorded = record(monkeypatch, command)
        assert main(["cache", *words.split()]) == 0
        [(_, options)] = recorded
        calls[command] = options
    folder = {"config_dir": Path()}
    assert calls == {
        "cache status": folder | {"as_json": True},
        "cache verify": folder | {"as_json": True, "remove_damaged": True},
        "cache prune": folder | {"yes": True},
        "cache decode": folder | {"clip": "a/b.mp4", "out": Path("c.mp4")},
    }


@pytest.mark.parametrize("command", RUNS)
def test_runs_take_what_is_handed_over(monkeypatch, command):
    calls = record(monkeypatch, command)
    main([*command.split(), *(["clips"] if command == "init" else [])])
    [(_, options)] = calls
    module, function = RUNS[command]
    tree = ast.parse(
        (Path(longcat_tune.__file__).parent / "runs" / f"{module}.py").read_text(encoding="utf-8")
    )
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    assert len(found.args.args) == 1
    assert {argument.arg for argument in found.args.kwonlyargs} == options.keys()


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (None, 0, ""),
        (DataError("clip.mp4 is empty; remove it"), 1, "error: clip.mp4 is empty; remove it\n"),
        (InterruptedRunError("stopped at step 3"), 130, "error: stopped at step 3\n"),
        (
            KeyboardInterrupt(),
            130,
            "error: stopped by Ctrl-C; finished files are kept, and the same command goes on\n",
        ),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, printed):
    record(monkeypatch, "check", error=error)
    assert main(["check"]) == code
    assert capsys.readouterr().err.lstrip("\n") == printed


def test_a_bug_keeps_its_traceback(monkeypatch):
    record(monkeypatch, "check", error=ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        main(["check"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "--lora_rnk", "8"], "No such option: --lora_rnk (Possible options: --lora_"),
        (["chekc"], "No such command 'chekc'. Did you mean 'check'"),
        (["check", "--lora_rank"], "Option '--lora_rank' requires an argument."),
        (["check", "stray"], "Got unexpected extra argument(s) (stray)"),
        (["init"], "Missing argument 'CLIPS_DIR'."),
        (["lora"], "Missing command."),
        (["cache"], "Missing command."),
        (["cache", "prune", "--no"], "No such option: --no"),
        (["cache", "verify", "--lora_rank", "0"], "command line: --lora_rank (0) must be at least 1"),
        (["check", "--lora_rank", "0"], "command line: --lora_rank (0) must be at least 1"),
        (["check", "--config", "no/config.json"], "no/config.json: there is no such file; "),
    ],
)
def test_a_wrong_command_line_or_config_is_told_with_code_2(capsys, words, message):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}"), printed


def test_lora_commands_convert_inspect_and_merge(tmp_path, capsys):
    down, up = torch.ones(2, 192), torch.ones(192, 2)
    weights = {"blocks.0.attn.proj.lora_A.weight": down, "blocks.0.attn.proj.lora_B.weight": up}
    write_lora(tmp_path / "a.safetensors", LoraWeights(weights, {"blocks.0.attn.proj": 2.0}))
    target = tmp_path / "a.comfyui.safetensors"
    assert main(["lora", "convert", str(tmp_path / "a.safetensors"), str(target), "--to", "comfyui"]) == 0
    assert main(["lora", "inspect", "--json", str(target)]) == 0
    [report] = json.loads(capsys.readouterr().out)
    assert (report["format"], report["file"]) == ("comfyui", str(target))
    merged = tmp_path / "merged"
    assert main(["lora", "merge", "tiny", f"{target}:0.5", "--out", str(merged)]) == 0
    assert (merged / "config.json").is_file()
    assert main(["lora", "merge", "tiny", str(target), "--out", str(merged)]) == 2


def test_the_version_and_the_list_of_commands(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"longcat-tune {__version__}\n"
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    names = {name.split()[0] for name in RUNS} | {"lora", "server"}
    assert [name for name in names if f"\n  {name} " not in text] == []


def test_the_package_is_the_program():
    code = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('longcat_tune', {}, '__main__')"
    assert python(code) == f"longcat-tune {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["cache", "verify", "--help"]])
def test_help_reads_nothing_heavy(words):
    code = (
        "import sys; from longcat_tune.cli import main; main(sys.argv[1:]); "
        "print({'torch', 'diffusers', 'transformers', 'peft', 'av', 'numpy'} & sys.modules.keys())"
    )
    assert python(code.replace("sys.argv[1:]", repr(words))).splitlines()[-1] == "set()"


def test_verbose_reaches_the_log_and_only_the_first_process_of_several_tells(monkeypatch):
    record(monkeypatch, "check")
    seen: list[tuple[bool, bool]] = []
    monkeypatch.setattr("longcat_tune.log.set_up", lambda *, verbose, quiet: seen.append((verbose, quiet)))
    main(["check", "--verbose"])
    main(["check"])
    monkeypatch.setenv("RANK", "1")
    main(["check"])
    assert seen == [(True, False), (False, False), (False, True)]
