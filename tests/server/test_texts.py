"""Every sentence is there in each language, and no page, script or refusal shows one that is not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from longcat_tune.server import texts
from longcat_tune.server.replies import Refusal
from longcat_tune.server.texts import LANGUAGES, catalogue, translate

ROOM = Path(texts.__file__).parent
TEMPLATES = sorted((ROOM / "templates").glob("*.html"))
SCRIPTS = sorted((ROOM / "static").glob("*.js"))

QUOTED = re.compile(r"""["']([a-z_]+\.[a-z0-9_]+)["']""")
ATTRIBUTES = re.compile(r"""\b(?:alt|title|placeholder|aria-label)=(?:"([^"]*)"|'([^']*)')""")
INLINE = re.compile(
    r"""<style|\sstyle=|<script(?![^>]*\bsrc=)|\son[a-z]+=|hx-on|hx-vals=.js|javascript:""", re.I
)
DANGEROUS = re.compile(
    r"""\beval\(|new Function|\.innerHTML|\.outerHTML|insertAdjacentHTML|document\.write|\bstyle["'],"""
)


LONGEST_NAME = 3
"""Words."""
WORD = re.compile(r"[^\W\d_]{2,}")
UNITS = {"GiB", "MiB", "GB", "MB", "kB", "px", "ms", "UTC"}


def features() -> set[str]:
    return {key.split(".")[0] for key in catalogue()}


def named_in_templates() -> Iterator[tuple[str, str]]:
    for path in [*TEMPLATES, *SCRIPTS]:
        yield from ((path.name, key) for key in QUOTED.findall(path.read_text(encoding="utf-8")))


def named_in_code() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOM.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


def is_key(text: str) -> bool:
    """Whether it is one, or what some are put together from: "runs.state_" ~ state."""
    return text in catalogue() or (text.endswith("_") and any(key.startswith(text) for key in catalogue()))


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def words_of(template: str) -> list[str]:
    """What a template says by itself: no tags of Jinja or HTML, and no code, which has no language."""
    attributes = " ".join("".join(pair) for pair in ATTRIBUTES.findall(template))
    shown = re.sub(r"\{% set \w+ %\}.*?\{% endset %\}", " ", template, flags=re.S)
    shown = re.sub(r"<(code|kbd)\b.*?</\1>", " ", shown, flags=re.S)
    shown = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", " ", shown, flags=re.S)
    shown = re.sub(r"<[^>]*>", " ", shown)
    attributes = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", " ", attributes)
    return [one for one in WORD.findall(re.sub(r"&\w+;", " ", f"{shown} {attributes}")) if one not in UNITS]


@pytest.mark.parametrize("key", catalogue())
def test_each_sentence_is_there_in_each_language(key):
    versions = catalogue()[key]
    assert versions.keys() == LANGUAGES.keys()
    assert all(text.strip() == text and text for text in versions.values())
    assert placeholders(versions["en"]) == placeholders(versions["zh"])
    # A name may be the same everywhere; a sentence is not.
    chinese = re.search(r"[\u4e00-\u9fff]", versions["zh"])
    assert chinese or len(versions["en"].split()) <= LONGEST_NAME, f"{key} is not translated"


def test_each_key_that_is_named_exists():
    known = features()
    named = [
        (where, key)
        for where, key in [*named_in_templates(), *named_in_code()]
        if QUOTED.fullmatch(f"'{key}'")
    ]
    files = {"json", "html", "py", "js", "css", "mp4", "png", "txt", "log"}
    missing = [
        (where, key)
        for where, key in named
        if key.split(".")[0] in known and key.split(".")[1] not in files and not is_key(key)
    ]
    assert missing == []


def test_each_key_is_named_somewhere():
    sources = [
        path.read_text(encoding="utf-8") for path in [*TEMPLATES, *SCRIPTS, *sorted(ROOM.glob("*.py"))]
    ]
    named = set(re.findall(r"""["']([a-z_]+\.[a-z0-9_]*)["'{]""", "\n".join(sources)))
    beginnings = tuple(name for name in named if name.endswith(("_", ".")))
    unused = [key for key in catalogue() if key not in named and not key.startswith(beginnings)]
    assert unused == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_no_words_of_its_own(path):
    assert words_of(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_no_script_or_style_inline(path):
    assert INLINE.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_makes_no_html_of_strings(path):
    assert DANGEROUS.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("<p>Hello</p>", ["Hello"]),
        ('<p title="Hello">{{ t("a.b") }}</p>', ["Hello"]),
        ('<input placeholder="你好">', ["你好"]),
        ('<p title="{{ t("a.b") }}">{# a note #}{% if x %}×{% endif %}<code>--lora</code>&nbsp;</p>', []),
    ],
)
def test_words_of_a_template_are_seen(template, found):
    assert words_of(template) == found


def test_a_refusal_is_told_in_each_language_or_as_it_is():
    refusal = Refusal(404, "app.no_such_file", name="{x}.mp4")
    assert refusal.text == str(refusal.detail) == translate("en", "app.no_such_file", name="{x}.mp4")
    assert "{x}.mp4" in refusal.told("zh") != refusal.text
    raw = Refusal(400, "num_frames (50) must be {4k + 1}")
    assert raw.told("zh") == raw.text == "num_frames (50) must be {4k + 1}"


def test_an_unknown_key_is_a_bug():
    with pytest.raises(KeyError):
        translate("en", "app.nothing")
