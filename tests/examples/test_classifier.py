"""The docstring classifier: its texts, the fit of its head, and what is taken for a head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest
import torch
from safetensors.torch import save
from torch import nn

from examples import train_classifier
from examples.classifier import FORMAT, WIDTH, Accuracy, Head, load_head, spread
from examples.docstrings import MOST, Text, read_texts, richest
from examples.train_classifier import PARTS, fit, quality
from ir.errors import UntrustedError, UsageError

CLASSES = ("mailbox", "tarfile")


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return read_texts(("mailbox", "tarfile", "no_such_module"))


def test_parts_of_known_texts_never_change() -> None:
    known = {"held_out": ("third", "seventh"), "validation": ("first", "eighth"), "fit": ("second", "fourth")}
    for part, numbers in known.items():
        assert {Text(f"Return the {number} byte", "any").part for number in numbers} == {part}


def test_texts_are_disjoint_and_stable(texts: list[Text]) -> None:
    assert texts == read_texts(("mailbox", "tarfile"))
    assert {text.module for text in texts} == set(CLASSES)
    assert len({text.text for text in texts}) == len(texts)
    share = sum(text.part == "held_out" for text in texts) / len(texts)
    assert 0.1 < share < 0.3
    assert {text.part for text in texts} == set(PARTS)


def test_shared_texts_and_too_many_texts_are_left_out(tmp_path: Path) -> None:
    def source(names: range) -> str:
        return "".join(f'def f{i}():\n    """The text of number {i} here."""\n\n' for i in names)

    (tmp_path / "a.py").write_text(source(range(10)) + 'def g():\n    """Too short."""\n')
    (tmp_path / "b.py").write_text(source(range(5, 15)))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "__init__.py").write_text(source(range(100, 200 + MOST)))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "__init__.py").write_text(source(range(900, 950)))
    found = read_texts(root=tmp_path)
    assert [sum(text.module == name for text in found) for name in ("a", "b", "c", "test")] == [5, 5, MOST, 0]
    assert richest(found, 2) == ("a", "c")
    with pytest.raises(ValueError, match="3 modules have docstrings, not 4"):
        richest(found, 4)


def test_the_head_separates_what_can_be_separated() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    labels = torch.arange(200) % 4
    x = centres[labels] + 0.2 * torch.randn(200, 16, generator=generator)
    classes = ("a", "b", "c", "d")
    nothing = Head(classes, torch.zeros(4, 16), torch.zeros(4))
    head = fit(x[:100], labels[:100], nothing, 1e-4)
    texts = [Text("names b only", classes[label]) for label in labels[100:]]
    got = quality(head, x[100:], labels[100:], texts, "a")
    assert got["accuracy"] == got["accuracy_top_3"] == 1.0
    assert got["always_the_commonest"] == got["the_module_it_names"] == 0.25
    strict = fit(x[:100], labels[:100], head, 1.0)
    assert strict.weight.norm() < head.weight.norm()
    torch.testing.assert_close(strict.weight, fit(x[:100], labels[:100], nothing, 1.0).weight, rtol=1e-3, atol=1e-4)


def bag_of_words(texts: Sequence[Text]) -> torch.Tensor:
    """Stands for the encoder: float32 [texts, WIDTH]."""
    rows = torch.zeros(len(texts), WIDTH)
    for row, text in zip(rows, texts, strict=True):
        for word in text.text.split():
            row[crc32(word.encode()) % WIDTH] += 1
    return nn.functional.normalize(rows, dim=-1)


def test_the_command_writes_a_head_and_what_made_it(
    tmp_path: Path, texts: list[Text], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_classifier, "embeddings", bag_of_words)
    monkeypatch.setattr(train_classifier, "read_texts", lambda modules=None: texts)
    out = tmp_path / "head.safetensors"
    assert train_classifier.main(["--classes", "3", "--out", str(out)]) == 2
    assert "2 modules have docstrings, not 3" in capsys.readouterr().err
    assert train_classifier.main(["--classes", "2", "--out", str(out)]) == 0
    head, report = load_head(out), json.loads(out.with_suffix(".json").read_text())
    assert report["classes"] == {name: sum(text.module == name for text in texts) for name in CLASSES}
    held_out = [text for text in texts if text.part == "held_out"]
    chosen = nn.functional.linear(bag_of_words(held_out), head.weight, head.bias).argmax(-1)
    right = sum(CLASSES[row] == text.module for row, text in zip(chosen.tolist(), held_out, strict=True))
    assert report["held_out"]["accuracy"] == pytest.approx(right / len(held_out), abs=1e-4)
    assert report["held_out"]["texts"] == len(held_out)
    assert report["held_out"]["accuracy"] > report["held_out"]["always_the_commonest"]
    losses = {row["penalty"]: row["validation_cross_entropy"] for row in report["penalties"]}
    assert report["penalty"] == min(losses, key=lambda penalty: losses[penalty])


def test_accuracy_counts_right_rows() -> None:
    def engine(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": nn.functional.one_hot(input_ids, 3).float()}

    batches = [{"input_ids": torch.tensor([0, 1])}, {"input_ids": torch.tensor([2, 2])}]
    assert Accuracy(batches, torch.tensor([0, 1, 2, 0]))(engine) == 0.75


def test_spread_is_even_and_ordered(texts: list[Text]) -> None:
    assert spread(texts, 10**6) == texts
    few = spread(texts, 5)
    assert len(few) == 5 and few[0] == texts[0]
    assert [texts.index(text) for text in few] == sorted(texts.index(text) for text in few)


def test_a_head_comes_back(tmp_path: Path) -> None:
    head = Head(CLASSES, torch.randn(2, WIDTH), torch.randn(2))
    path = tmp_path / "head.safetensors"
    path.write_bytes(head.pack({}))
    back = load_head(path)
    assert back.classes == CLASSES
    assert torch.equal(back.weight, head.weight) and torch.equal(back.bias, head.bias)


@pytest.mark.parametrize("classes", ["", "{}", "[1, 2]", '["a"]', '["a", "a"]', '["a", "../b"]', '["a", "b", "c"]'])
def test_foreign_heads_are_refused(tmp_path: Path, classes: str) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(UsageError, match="there is no checkpoint"):
        load_head(path)
    weights = {"weight": torch.zeros(2, WIDTH), "bias": torch.zeros(2)}
    path.write_bytes(save(weights, {"format": FORMAT, "classes": classes}))
    with pytest.raises(UntrustedError, match="this is no checkpoint of format"):
        load_head(path)
