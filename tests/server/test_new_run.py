"""A run is made, checked as it is written, started only as it was checked, and changed while it rests."""

from __future__ import annotations

import json
import sys
from html import unescape
from pathlib import Path

import pytest

from longcat_tune.config.load import load_run_config
from longcat_tune.config.run import keys
from longcat_tune.server.devices import MACHINE, Device
from longcat_tune.server.presets import PRESETS
from longcat_tune.server.runs_pages import jobs_of
from longcat_tune.server.schema_form import MANAGED_KEYS
from longcat_tune.server.texts import catalogue
from tests.server.web import make_client

COMMAND = (sys.executable, str(Path(__file__).with_name("stand_in_check.py")))
JSON = {"accept": "application/json"}
DRAFT = "0123456789abcdef"
GOOD = '{"model_flavour": "tiny", "max_train_steps": 7, "data_backend_config": "datasets/clips.json"}'


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "home" / "datasets").mkdir(parents=True)
    (tmp_path / "home" / "datasets" / "clips.json").write_text("[]")
    return (tmp_path / "home").resolve()


@pytest.fixture
def client(home):
    return make_client(home, command=COMMAND)


def edit(client, source: str, text: str, **more: object) -> dict:
    reply = client.post("/runs/new/edit", json={"source": source, "text": text, **more}, headers=JSON)
    assert reply.status_code == 200, reply.text
    return reply.json()


def check(client, text: str, **more: object):
    return client.post("/runs/new/check", json={"draft": DRAFT, "text": text, **more}, headers=JSON)


def save(client, text: str, address: str = "/runs/new", **more: object):
    return client.post(address, json={"draft": DRAFT, "text": text, **more}, headers=JSON)


def draft_of(client, run: str) -> str:
    """As the page of a run that exists has it."""
    return client.get(f"/runs/{run}/config").text.partition('data-draft="')[2][: len(DRAFT)]


def text_in(page: str) -> str:
    area = page.partition('<textarea class="code" id="text"')[2].partition(">\n")[2]
    return unescape(area.partition("</textarea>")[0])


def config_of(home: Path, run: str) -> dict:
    return json.loads((home / "runs" / run / "config.json").read_text())


def test_the_page_has_a_field_for_every_key_and_says_everything_in_both_languages(client) -> None:
    for language, section in (("en", "Noise and loss"), ("zh", "噪声与损失")):
        page = client.get("/runs/new", headers={"accept-language": language}).text
        assert section in page
        for key in {*keys()} - MANAGED_KEYS:
            assert f'name="{key}"' in page, key
        for preset in PRESETS:
            assert f'<option value="{preset}"' in page
        assert len(page) < 120_000
        assert " style=" not in page
        assert "<script>" not in page


def test_every_sentence_has_both_languages() -> None:
    for key, versions in catalogue().items():
        if key.startswith("new_run."):
            assert set(versions) == {"en", "zh"}, key


def test_the_only_dataset_is_chosen_and_a_named_one_before_it(client, home) -> None:
    assert json.loads(text_in(client.get("/runs/new").text))["data_backend_config"] == "datasets/clips.json"
    (home / "datasets" / "more.json").write_text("[]")
    assert "data_backend_config" not in json.loads(text_in(client.get("/runs/new").text))
    chosen = json.loads(text_in(client.get("/runs/new?dataset=more").text))
    assert chosen["data_backend_config"] == "datasets/more.json"


def test_what_the_form_changes_is_in_the_text_and_the_other_way_round(client) -> None:
    answer = edit(client, "form", "{}", fields={"lora_rank": "16", "seed": "42", "use_dora": "true"})
    assert json.loads(answer["text"]) == {"lora_rank": 16, "use_dora": True}
    answer = edit(client, "text", '{"lora_rank": 32, "lora_format": ["peft", "comfyui"]} // mine')
    assert answer["fields"]["lora_rank"] == "32"
    assert answer["fields"]["lora_format"] == "peft, comfyui"
    assert answer["fields"]["seed"] == ""
    assert "text" not in answer
    assert answer["problems"] == []


def test_a_text_that_cannot_be_read_is_not_written_over_by_the_form(client) -> None:
    answer = edit(client, "form", '{"lora_rank": 16', fields={"seed": "7"})
    assert not answer["readable"]
    assert "text" not in answer
    assert answer["problems"]


def test_keys_that_the_form_does_not_know_outlive_a_change_of_the_form(client) -> None:
    answer = edit(client, "form", '{"webhook_config": "x", "loraa": 1}', fields={"seed": "7"})
    assert json.loads(answer["text"]) == {"seed": 7, "webhook_config": "x", "loraa": 1}
    assert [one["text"] for one in answer["problems"]] == [
        "loraa (1) is not a known key; did you mean lora_rank?"
    ]


def test_problems_stand_at_their_field_in_the_words_of_the_schema(client) -> None:
    answer = edit(client, "form", "{}", fields={"lora_rank": "0", "data_backend_config": "../x.json"})
    assert [one["key"] for one in answer["problems"]] == ["lora_rank", "data_backend_config"]
    assert answer["problems"][0]["text"].startswith("lora_rank (0) must be at least 1")


def test_presets_and_flavours_change_the_text(client) -> None:
    text = edit(client, "flavour", "{}", choice="final")["text"]
    answer = edit(client, "preset", text, choice="24")
    assert json.loads(answer["text"]).items() >= dict(PRESETS["24"].values).items()
    assert answer["presets"] == ["24"]
    tiny = edit(client, "flavour", answer["text"], choice="tiny")
    assert json.loads(tiny["text"])["model_flavour"] == tiny["flavour"] == "tiny"
    for source in ("preset", "flavour"):
        body = {"source": source, "text": "{}", "choice": "9"}
        assert client.post("/runs/new/edit", json=body, headers=JSON).status_code == 422


def test_the_check_tells_clips_steps_memory_and_time(client) -> None:
    answer = check(client, GOOD).json()
    assert answer["passed"]
    for words in (
        "64x128@17",
        "120",
        "2.0 GiB",
        "About 2.0 s per step",
        "4 min",
        "a &lt;b&gt;fact&lt;/b&gt;",
    ):
        assert words in answer["html"], words


def test_the_check_looks_at_a_config_that_writes_nothing_among_the_runs(client, home) -> None:
    check(client, GOOD)
    [call] = [json.loads(line) for line in (home / "calls.jsonl").read_text().splitlines()]
    assert call["config"]["data_backend_config"] == str(home / "datasets" / "clips.json")
    assert Path(call["config"]["output_dir"]).is_relative_to(home / ".longcat-tune")
    assert not (home / "runs").exists()


def test_problems_of_the_check_are_told_with_their_remedies(client) -> None:
    answer = check(client, GOOD.replace("{", '{"tracker_run_name": "refuses",', 1)).json()
    assert not answer["passed"]
    assert "has no caption" in answer["html"]
    assert "/secret/a.mp4" in answer["html"]
    assert 'href="#key-lora_rank"' in answer["html"]
    assert 'href="/datasets/clips"' in answer["html"]


def test_a_visitor_from_elsewhere_is_told_no_path_of_the_machine(home) -> None:
    client = make_client(home, command=COMMAND, host="0.0.0.0", token="t" * 20)
    client.headers["authorization"] = "Bearer " + "t" * 20
    answer = check(client, GOOD.replace("{", '{"tracker_run_name": "refuses",', 1)).json()
    assert "has no caption" in answer["html"]
    assert "/secret" not in answer["html"]
    broken = check(client, GOOD.replace("{", '{"tracker_run_name": "breaks",', 1)).json()
    assert str(home) not in broken["html"]
    assert "no good: config.json" in broken["html"]


def test_what_the_schema_refuses_is_not_even_checked(client, home) -> None:
    reply = check(client, '{"lora_rank": 0}')
    assert reply.status_code == 422
    assert "lora_rank (0) must be at least 1" in reply.json()["error"]
    assert not (home / "calls.jsonl").exists()


def test_a_run_that_was_checked_as_it_is_starts(client, home) -> None:
    assert check(client, GOOD).json()["passed"]
    reply = save(client, GOOD, name="Red kite", start=True)
    assert reply.json() == {"location": "/runs/red-kite"}
    config = config_of(home, "red-kite")
    assert config == {
        "model_flavour": "tiny",
        "max_train_steps": 7,
        "data_backend_config": str(home / "datasets" / "clips.json"),
        "output_dir": str(home / "runs" / "red-kite" / "results"),
    }
    load_run_config(home / "runs" / "red-kite" / "config.json", {})
    assert json.loads((home / "runs" / "red-kite" / "run.json").read_text())["name"] == "Red kite"
    [job] = jobs_of(client).list()
    assert (job.kind, job.run, job.state) == ("train", "red-kite", "queued")
    assert job.argv == ("train", "--config", str(home / "runs" / "red-kite" / "config.json"))


@pytest.mark.parametrize("change", ["nothing", "text", "dataset", "failed"])
def test_nothing_starts_that_was_not_checked_as_it_is(client, home, change) -> None:
    text = GOOD
    if change != "nothing":
        assert check(client, text).json()["passed"]
    if change == "text":
        text = text.replace("7", "8")
    if change == "dataset":
        (home / "datasets" / "clips.json").write_text("[ ]  ")
    if change == "failed":
        text = text.replace("{", '{"tracker_run_name": "refuses",', 1)
        check(client, text)
    assert save(client, text, start=True).status_code == 409
    assert not (home / "runs").exists()
    assert not jobs_of(client).list()


def test_the_same_config_in_other_words_needs_no_other_check(client) -> None:
    check(client, GOOD)
    assert save(client, f"// mine\n{GOOD}", start=True).status_code == 200


def test_names_become_ids_that_are_free_and_no_address_of_another_page(client) -> None:
    names = ["A b", "a B", "new", "", "红风筝", "x" * 200]
    places = [save(client, GOOD, name=name).json()["location"] for name in names]
    assert [place.removesuffix("/config?saved=1") for place in places] == [
        "/runs/a-b",
        "/runs/a-b-2",
        "/runs/new-2",
        "/runs/run",
        "/runs/run-2",
        f"/runs/{'x' * 60}",
    ]
    for bad in ("x" * 201, "a\x00b", "a\nb"):
        assert save(client, GOOD, name=bad).status_code == 400


def test_a_run_is_shown_as_it_was_saved_and_changed(client, home) -> None:
    place = save(client, GOOD, name="One").json()["location"]
    page = client.get(place).text
    assert json.loads(text_in(page)) == json.loads(GOOD)
    assert str(home) not in page
    changed = GOOD.replace("7", "9")
    draft = draft_of(client, "one")
    assert save(client, changed, "/runs/one/config", draft=draft).json() == {"location": place}
    assert config_of(home, "one")["max_train_steps"] == 9
    assert config_of(home, "one")["output_dir"] == str(home / "runs" / "one" / "results")
    assert json.loads(text_in(client.get("/runs/new?like=one").text))["max_train_steps"] == 9


def test_of_two_pages_that_change_a_run_the_second_is_told_and_overwrites_nothing(client, home) -> None:
    save(client, GOOD, name="One")
    first, second = draft_of(client, "one"), draft_of(client, "one")
    assert first != second
    address = "/runs/one/config"
    assert save(client, GOOD.replace("7", "9"), address, draft=first).status_code == 200
    refused = save(client, GOOD.replace("7", "11"), address, draft=second)
    assert (refused.status_code, "changed elsewhere" in refused.text) == (409, True)
    assert config_of(home, "one")["max_train_steps"] == 9
    again = draft_of(client, "one")
    assert save(client, GOOD.replace("7", "11"), address, draft=again).status_code == 200


def test_the_check_of_a_run_looks_where_it_would_go_on(client, home) -> None:
    save(client, GOOD, name="One")
    draft = draft_of(client, "one")
    assert check(client, GOOD, draft=draft).json()["passed"]
    assert save(client, GOOD, "/runs/one/config", draft=draft, start=True).status_code == 409
    (home / "calls.jsonl").unlink()
    assert check(client, GOOD, draft=draft, run="one").json()["passed"]
    [call] = [json.loads(line) for line in (home / "calls.jsonl").read_text().splitlines()]
    assert call["config"]["output_dir"] == str(home / "runs" / "one" / "results")
    assert save(client, GOOD, "/runs/one/config", draft=draft, start=True).status_code == 200
    assert [job.run for job in jobs_of(client).list()] == ["one"]


def test_a_run_that_waits_or_runs_is_not_changed(client, home) -> None:
    check(client, GOOD)
    save(client, GOOD, name="One", start=True)
    draft = draft_of(client, "one")
    assert save(client, GOOD.replace("7", "9"), "/runs/one/config", draft=draft).status_code == 409
    assert config_of(home, "one")["max_train_steps"] == 7
    assert "data-locked" in client.get("/runs/one/config").text


@pytest.fixture
def card(client, monkeypatch) -> Device:
    """The only device: a card of 24,564 MiB, as the stand-in of the driver says."""
    device = Device("GPU-of-the-tests", "GPU 0: Card", 0)
    monkeypatch.setattr(jobs_of(client), "_devices", (device,))
    monkeypatch.setattr("longcat_tune.server.preflight_device.MEMORY_QUERY", ("sh", "-c", "echo 24564"))
    return device


def test_a_check_beside_a_busy_device_counts_on_all_of_its_memory(client, home, card, monkeypatch) -> None:
    assert "All devices are busy" not in check(client, GOOD).json()["html"]
    monkeypatch.setattr(jobs_of(client), "active", lambda run=None: [Busy()])
    assert "All devices are busy" in check(client, GOOD).json()["html"]
    free, busy = [json.loads(line) for line in (home / "calls.jsonl").read_text().splitlines()]
    assert (free["card"], busy["card"]) == (card.id, card.id)
    assert "--device-memory" not in free["words"]
    assert busy["words"][-2:] == ["--device-memory", "24564MiB"]


def test_a_new_run_starts_with_what_fits_the_machine(client, card, monkeypatch) -> None:
    values = json.loads(text_in(client.get("/runs/new").text))
    assert values.items() >= dict(PRESETS["24"].values).items()
    monkeypatch.setattr(jobs_of(client), "_devices", (MACHINE,))
    assert json.loads(text_in(client.get("/runs/new").text))["model_flavour"] == "tiny"


class Busy:
    device, state = "GPU-of-the-tests", "running"


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("/runs/new/edit", {"source": "elsewhere", "text": "{}"}),
        ("/runs/new/edit", {"source": "text", "text": 7}),
        ("/runs/new/edit", {"source": "form", "text": "{}", "fields": {"seed": 7}}),
        ("/runs/new/check", {"draft": "../../x", "text": GOOD}),
        ("/runs/new/check", {"draft": DRAFT, "text": GOOD, "run": "../.."}),
        ("/runs/new/check", {"draft": DRAFT, "text": GOOD, "run": "nobody"}),
        ("/runs/new/check", {"draft": DRAFT, "text": "[" * 60000}),
        ("/runs/new", {"draft": DRAFT, "text": "\ud800"}),
        ("/runs/new", {"draft": DRAFT, "text": GOOD, "more": 1}),
        ("/runs/new", {"draft": DRAFT, "text": '{"init_lora": "/etc/passwd"}'}),
        ("/runs/nobody/config", {"draft": DRAFT, "text": GOOD}),
        ("/runs/new/config", {"draft": DRAFT, "text": GOOD}),
    ],
)
def test_what_no_page_sends_is_refused_and_leaves_nothing(client, home, address, body) -> None:
    reply = client.post(
        address, content=json.dumps(body), headers={**JSON, "content-type": "application/json"}
    )
    assert 400 <= reply.status_code < 500
    assert not (home / "runs").exists()
    assert not (home / "calls.jsonl").exists()


@pytest.mark.parametrize(
    "address", ["/runs/nobody/config", "/runs/..%2f..%2fx/config", "/runs/new?like=../x"]
)
def test_a_run_that_is_not_there_has_no_form(client, address) -> None:
    assert client.get(address).status_code in {400, 403, 404}
