"""Model cards: in the hub's format, true to the run, and inert whatever a run's texts hold; exported folders in plain transformers."""

from __future__ import annotations

import copy
import json
import re

import pytest
import yaml
from browser import EVIL_TEXT, on_a_telephone
from bs4 import BeautifulSoup
from evaluated import experiment, made
from hypothesis import given
from hypothesis import strategies as st
from released import RECORD, better, finished

from speechlab import card, checkpoints, evaluation, markup
from speechlab.errors import InputError
from speechlab.runs import Run

MARKDOWN = "x\n---\nlicense: cc0-1.0\n---\n# Head\n\n- [a](javascript:alert(1)) ![b](http://x/y.png) | c | *d* `e` www.x.org http://x.org "
MARKDOWN += EVIL_TEXT
TAGS = {"h1", "h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}


@pytest.fixture
def run(tmp_path, small_whisper) -> Run:
    return finished(tmp_path, small_whisper)


def header(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S).group(1))


def rendered(text: str) -> dict[str, BeautifulSoup]:
    """The body as three renderers show it."""
    import markdown
    import mistune
    from markdown_it import MarkdownIt

    body = text.split("\n---\n", 1)[1]
    pages = {
        "markdown-it": MarkdownIt("commonmark").enable("table").render(body),
        "mistune": mistune.create_markdown(escape=False, plugins=["table", "url", "strikethrough"])(body),
        "python-markdown": markdown.markdown(body, extensions=["tables", "fenced_code"]),
    }
    return {name: BeautifulSoup(page, "html.parser") for name, page in pages.items()}


def test_the_header_is_what_the_hub_reads(run):
    from huggingface_hub import ModelCard

    text = card.card(card.model(run))
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.language, data.license, data.library_name, data.pipeline_tag) == ("en", "other", "transformers", card.TASK)
    assert data.model_name == run.id and data.datasets == ["prompts"] and "whisper" in data.tags
    found = {e.metric_name: e.metric_value for e in data.eval_results}
    assert found["WER %, clean"] == 10.0 and {e.dataset_split for e in data.eval_results} == {"test"}
    assert "base_model" not in header(text), "a folder's path says nothing elsewhere"
    assert str(run.config.model.weights) not in text


@pytest.mark.parametrize(("weights", "base"), [("tiny.en", "openai/whisper-tiny.en"), ("someone/theirs", "someone/theirs")])
def test_weights_of_the_hub_are_the_base_model(run, weights, base):
    (run.path / "config.yaml").write_text(experiment(weights).to_yaml())
    text = card.card(card.model(run))
    assert header(text)["base_model"] == base and f"{base.replace('_', chr(92) + '_')}, trained further on prompts" in text


def test_the_body_says_what_the_run_says(run):
    text = card.card(card.model(run), "prompts-en")
    for said in (
        "# prompts-en",
        "| clean | As recorded. | 4 | 10.00 | 0.00 to 48.54 |",
        "| 30.00 |",  # before training
        "only 2 speakers",
        RECORD["data"]["licence"],
        RECORD["data"]["attribution"],
        RECORD["data"]["manifest_sha256"],
        RECORD["code"]["git_sha"],
        checkpoints.existing(run.path / "checkpoints")[0].digest,
        "step 1, validation WER 50.00 %",
        "Not measured under: noise, reverberation, codecs and telephones.",
        "AMD EPYC, 2 cores",
    ):
        assert said in text, said
    for page in rendered(text).values():
        assert [h.text for h in page.find_all("h2")] == [
            *("Results", "Data", "Intended use and limits", "How to use", "Training and its cost", "Provenance"),
        ]
        assert len(page.find_all("table")) == 2


def test_silence_is_counted_as_invented(run):
    best = checkpoints.existing(run.path / "checkpoints")[0]
    silent = made("finetuned", "silence", ["Thank you.", "", "", ""], "silence", weights_sha256=best.digest)
    evaluation.save(run.path / "evaluations", silent)
    text = card.card(card.model(run))
    assert "| silence |" in text and "24.0 invented words a minute" in text and "where nothing is said, it writes 24.0" in text
    assert not any("silence" in e["name"] for e in header(text)["model-index"][0]["results"][0]["metrics"])


def test_what_is_not_known_is_said_to_be_so(run, small_whisper):
    (run.path / "provenance.json").unlink()
    better(run, small_whisper, 2)  # nothing was measured of these weights
    text = card.card(card.model(run))
    assert "Nothing has been measured of these weights." in text and "No error rate is known." in text
    assert text.count(card.UNKNOWN) >= 6 and "model-index" not in header(text)


def test_texts_of_a_run_are_neither_yaml_nor_markdown_nor_html(run):
    record = copy.deepcopy(RECORD)
    for section in record.values():
        for key in section:
            section[key] = MARKDOWN
    (run.path / "config.yaml").write_text(run.config.model_copy(update={"question": MARKDOWN}).to_yaml())
    (run.path / "provenance.json").write_text(json.dumps(record))
    run = Run(run.path.rename(run.path.with_name(MARKDOWN.replace("/", "").replace("\n", " ")[:200])))
    text = card.card(card.model(run), MARKDOWN)
    found = header(text)
    assert found["license"] == "other" and found["model-index"][0]["name"].startswith("x --- license: cc0-1.0")
    for name, page in rendered(text).items():
        assert len(page.find_all("h2")) == 6 and len(page.find_all("h1")) == 1, name
        assert len(page.find_all("table")) == 2 and len(page.find_all("code")) == 1, name
        assert all(len(row.find_all(["td", "th"])) in (2, 8) for row in page.find_all("tr")), name
        assert {tag.name for tag in page.find_all()} <= TAGS, name
        assert EVIL_TEXT in " ".join(page.text.split()), "it is shown as it is"
    raw = text.replace(card.plain(MARKDOWN), MARKDOWN)
    assert rendered(raw)["markdown-it"].find("script"), "and without the escape it would be markup"


def evil(run: Run) -> str:
    """The card of a run whose texts are all hostile."""
    record = copy.deepcopy(RECORD)
    for section in record.values():
        section.update(dict.fromkeys(section, MARKDOWN))
    (run.path / "config.yaml").write_text(run.config.model_copy(update={"question": MARKDOWN}).to_yaml())
    (run.path / "provenance.json").write_text(json.dumps(record))
    return card.card(card.model(run), MARKDOWN)


def test_on_a_page_a_card_is_inert_and_has_no_header(run):
    page = BeautifulSoup(markup.markdown_html(evil(run)), "html.parser")
    assert {tag.name for tag in page.find_all()} <= {"div", "h3", "h4", "p", "ul", "li", "pre", "code"} | {t for t in TAGS if t[0] == "t"}
    assert [h.text for h in page.find_all("h4")] == [h.text for h in rendered(card.card(card.model(run)))["markdown-it"].find_all("h2")]
    assert "pipeline_tag" not in page.text and EVIL_TEXT in " ".join(page.text.split())
    assert all(table.parent["class"] == ["scroll"] for table in page.find_all("table")) and len(page.find_all("table")) == 2
    raw = BeautifulSoup(markup.markdown_html(f"# a\n\n{MARKDOWN.splitlines()[-1]}\n\n<script>x</script>"), "html.parser")
    assert not raw.find_all(["script", "a", "img"]), "not even where somebody forgot to escape"


def test_beside_evaluations_there_is_a_card_or_a_reason(run, tmp_path):
    assert card.beside(run.path / "evaluations") == card.card(card.model(run))
    assert "only of what a run" in card.beside(tmp_path / "evaluations")
    assert "no validated checkpoint" in card.beside(Run.create(run.config, tmp_path).path / "evaluations")


@pytest.mark.slow
def test_a_card_reads_on_a_telephone_and_runs_nothing(run, tmp_path):
    path = tmp_path / "card.html"
    about = {"title": "card", "css": markup.Html(markup.CSS), "about": "", "legend": ""}
    path.write_bytes(markup.PAGE.format(**about, body=markup.markdown_html(evil(run))).encode("utf-8", "replace"))
    assert [tab.locator("h4", has_text="Results").is_visible() for tab in on_a_telephone(path)] == [True, True]


@given(st.text(max_size=40))
def test_plain_text_stays_what_it_is(text):
    from markdown_it import MarkdownIt

    page = BeautifulSoup(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"So: {card.plain(text)} end"), "html.parser")
    assert [tag.name for tag in page.find_all()] == ["p"]
    assert page.p.text.split() == f"So: {card._line(text)} end".split()


def test_an_exported_folder_is_transformers_whisper(run, tmp_path):
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = card.export(run, tmp_path / "out")
    assert not {p.suffix for p in folder.iterdir()} - {".safetensors", ".json", ".txt", ".md"}
    assert not {"optimizer.safetensors", "state.json", "files.json"} & {p.name for p in folder.iterdir()}
    net, report = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    WhisperProcessor.from_pretrained(folder)
    best = checkpoints.existing(run.path / "checkpoints")[0]
    kept = WhisperForConditionalGeneration.from_pretrained(best.path).state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    assert header((folder / "README.md").read_text())["library_name"] == "transformers"
    with pytest.raises(InputError, match="not empty"):
        card.export(run, tmp_path / "out")


def test_an_exported_folder_is_transformers_wav2vec2(tmp_path):
    from test_wav2vec2 import small
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

    (tmp_path / "start").mkdir()
    run = finished(tmp_path, small(tmp_path / "start", "layer", "transcripts"), "wav2vec2")
    folder = card.export(run, tmp_path / "out")
    _, report = Wav2Vec2ForCTC.from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    assert Wav2Vec2Processor.from_pretrained(folder).tokenizer.vocab_size > 20
    assert "wav2vec2" in header((folder / "README.md").read_text())["tags"]


def test_a_run_without_an_intact_checkpoint_has_no_card(run, tmp_path):
    with pytest.raises(InputError, match="no validated checkpoint"):
        card.model(Run.create(run.config, tmp_path))
    with open(checkpoints.existing(run.path / "checkpoints")[0].path / "model.safetensors", "ab") as f:
        f.write(b"x")
    with pytest.raises(InputError, match="is damaged"):
        card.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
