"""The docstring classifier: its texts, its training, and what is taken for a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from examples import adapter, classifier, train_classifier
from examples.classifier import FORMAT, WIDTH, Accuracy, Head, load_head, metric, spread
from examples.docstrings import MOST, Text, read_texts, richest
from examples.minilm import SentenceEmbedding, sentence_embedding
from examples.train_classifier import PARTS
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


def small_encoder() -> SentenceEmbedding:
    """Stands for MiniLM: two layers of its width."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return SentenceEmbedding(BertModel(config, add_pooling_layer=False)).eval()


def test_changes_are_nothing_at_first_and_merge_into_the_weights() -> None:
    plain, changed, merged = (small_encoder().encoder for _ in range(3))
    inputs = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    changes = adapter.attach(changed)
    assert len(changes) == 12 and {p.requires_grad for p in plain.parameters()} == {True}
    assert torch.equal(changed(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)
    for low in changes.values():
        torch.nn.init.normal_(low.b, std=0.05)
        low.a.data, low.b.data = low.a.data.half().float(), low.b.data.half().float()
    packed = adapter.pack(changes)
    assert {n: (t.shape, t.dtype) for n, t in packed.items()} == {
        n: (t.shape, t.dtype) for n, t in adapter.wanted(merged).items()
    }
    adapter.merge(merged, packed)
    got, want = (m(**inputs).last_hidden_state for m in (merged, changed))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, plain(**inputs).last_hidden_state, atol=1e-2)


def test_every_layer_learns_and_the_last_is_no_pupil_of_the_others() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    alone = train_classifier.loss_of(logits, labels, 0.0)
    (grad,) = torch.autograd.grad(alone, logits)
    assert grad[:2].abs().max() == 0 and grad[2].abs().max() > 0
    (both,) = torch.autograd.grad(train_classifier.loss_of(logits, labels, 1.0), logits)
    assert both[:2].abs().amax((1, 2)).min() > 0
    assert torch.equal(both[2], grad[2]), "what the last layer says is a target, not a weight"


def test_the_command_writes_a_checkpoint_and_what_made_it(
    tmp_path: Path, texts: list[Text], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_classifier, "sentence_embedding", small_encoder)
    monkeypatch.setattr(classifier, "sentence_embedding", small_encoder)
    texts = spread(texts, 90)
    monkeypatch.setattr(train_classifier, "read_texts", lambda modules=None: texts)
    out = tmp_path / "head.safetensors"
    assert train_classifier.main(["--classes", "3", "--out", str(out)]) == 2
    assert "2 modules have docstrings, not 3" in capsys.readouterr().err
    assert (
        train_classifier.main(["--classes", "2", "--epochs", "2", "--tokens", "16", "--batch", "8", "--out", str(out)])
        == 0
    )
    head, report = load_head(out), json.loads(out.with_suffix(".json").read_text())
    assert report["classes"] == {name: sum(text.module == name for text in texts) for name in CLASSES}
    assert [row["epoch"] for row in report["curve"]] == [1, 2]
    held_out = report["held_out"]
    assert len(held_out["accuracy_by_layer"]) == 2 and held_out["agreement_by_layer"][-1] == 1
    assert held_out["accuracy_by_layer"][-1] == held_out["accuracy"]
    found = metric(head, texts, 10**6)(classifier.classifier(head))
    assert found == pytest.approx(held_out["accuracy"], abs=0.02), "the checkpoint is what was judged"


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
    changes = {n: torch.randn(t.shape).half() for n, t in adapter.wanted(sentence_embedding().encoder).items()}
    head = Head(CLASSES, torch.randn(2, WIDTH), torch.randn(2), changes)
    path = tmp_path / "head.safetensors"
    path.write_bytes(head.pack({}))
    back = load_head(path)
    assert back.classes == CLASSES
    assert torch.equal(back.weight, head.weight) and torch.equal(back.bias, head.bias)
    assert back.changes.keys() == changes.keys() and all(torch.equal(back.changes[n], t) for n, t in changes.items())


@pytest.mark.parametrize("classes", ["", "{}", "[1, 2]", '["a"]', '["a", "a"]', '["a", "../b"]', '["a", "b", "c"]'])
def test_foreign_heads_are_refused(tmp_path: Path, classes: str) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(UsageError, match="there is no checkpoint"):
        load_head(path)
    weights = {"weight": torch.zeros(2, WIDTH), "bias": torch.zeros(2)}
    path.write_bytes(save(weights, {"format": FORMAT, "classes": classes}))
    with pytest.raises(UntrustedError, match="this is no checkpoint of format"):
        load_head(path)
