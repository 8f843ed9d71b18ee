"""What tests of previews do: fill in the form, find what came of it, let its job be over."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

from PIL import Image

HTMX = {"hx-request": "true"}
FORM = {
    "base": "tiny",
    "prompt": 'a dog\'s ball; $(rm -rf ~) "狗"',
    "negative_prompt": "blur",
    "width": "64",
    "height": "80",
    "frames": "9",
    "steps": "20",
    "guidance": "3.5",
    "seed": "7",
}


def folders(home):
    return sorted((home / ".longcat-tune" / "previews").glob("2*"))


def submit(client, **changes):
    return client.post("/preview", data=FORM | changes, headers=HTMX)


def submitted(client, home, **changes) -> tuple[Path, dict, list[str]]:
    """The newest preview's folder, config and words."""
    reply = submit(client, **changes)
    assert reply.status_code == 200, reply.text
    folder = folders(home)[-1]
    record = json.loads((folder / "preview.json").read_text())
    return folder, json.loads((folder / "config.json").read_text()), record["argv"]


def end(client, folder, code, log=""):
    """Let a preview's job be over."""
    job = client.app.state.jobs.get(json.loads((folder / "preview.json").read_text())["job"])
    job.log.write_text(log)
    (job.folder / "started.json").write_text("{}")
    (job.folder / "ended.json").write_text(json.dumps({"exit_code": code, "time": time.time()}))


def upload(client) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "JPEG")
    return client.post("/preview/uploads", content=buffer.getvalue()).json()["name"]
