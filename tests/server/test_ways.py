"""Each page leads to the next one of a first run, and what was chosen there is chosen here."""

from __future__ import annotations

import json

from tests.server.renders import make_lora, make_run
from tests.server.web import make_client


def test_a_dataset_leads_to_a_new_run_with_it(tmp_path):
    client = make_client(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "clips").mkdir()
    entry = {"id": "clips", "instance_data_dir": "../clips"}
    for name in ("rain", "snow"):
        (tmp_path / "datasets" / f"{name}.json").write_text(json.dumps([entry]))
    assert 'href="/runs/new?dataset=snow"' in client.get("/datasets/snow").text
    assert '<option value="datasets/snow.json" selected>' in client.get("/runs/new?dataset=snow").text


def test_a_run_leads_to_a_preview_with_its_last_lora(tmp_path):
    client = make_client(tmp_path)
    results = make_run(tmp_path)
    (results.parent / "run.json").write_text(json.dumps({"name": "Dog", "created": 1.8e9}))
    make_run(tmp_path, "cat")
    assert 'href="/preview?run=dog"' in client.get("/runs/dog").text
    assert ">Renders of Dog</h1>" in client.get("/runs/dog/gallery").text
    assert 'name="lora" value=""' in client.get("/preview?run=dog").text
    for step in (500, 1000):
        make_lora(results / f"checkpoint-{step:06d}")
    last = "runs/dog/results/checkpoint-001000/pytorch_lora_weights.safetensors"
    assert f'name="lora" value="{last}"' in client.get("/preview?run=dog").text
    for other in ("/preview?run=cat", "/preview?run=nobody", "/preview"):
        assert 'name="lora" value=""' in client.get(other).text
