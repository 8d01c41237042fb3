"""The committed checkpoints are what their JSON files say, small, and as good as reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.trained import FOLDER

LARGEST = 8_000_000
REPORTS = sorted(FOLDER.glob("*.json"))


def check_tinylm(report: Mapping[str, Any]) -> None:
    from examples.tinylm import load_tinylm
    from examples.tinylm_data import read_corpus, windows
    from examples.train_tinylm import depths

    model = load_tinylm()
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters == report["model"]["parameters"]
    assert 3e6 <= parameters <= 6e6 and len(model.layers) >= 8
    assert model.head.weight.data_ptr() != model.embed.weight.data_ptr()
    rows = windows(read_corpus().held_out, model.config.context, 4)
    got, said = depths(model, rows, torch.device("cpu")), report["held_out"]["depths"]
    # a few windows, of perhaps another Python: near what the whole part gave
    assert got[-1]["bits_per_byte"] == pytest.approx(said[-1]["bits_per_byte"], abs=0.4)
    assert got[-1]["bits_per_byte"] < got[0]["bits_per_byte"]


def check_classifier(report: Mapping[str, Any]) -> None:
    from examples.classifier import classifier, load_head, metric
    from examples.docstrings import read_texts

    head = load_head()
    assert len(head.classes) >= 20 and set(head.classes) == set(report["classes"])
    accuracy = metric(head, read_texts(head.classes), 64)(classifier(head))
    assert accuracy == pytest.approx(report["held_out"]["accuracy"], abs=0.15)
    assert accuracy > 2 * report["held_out"]["always_the_commonest"]


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {"tinylm": check_tinylm, "classifier": check_classifier}


@pytest.mark.parametrize("path", REPORTS, ids=[path.stem for path in REPORTS])
def test_a_committed_checkpoint_is_what_its_report_says(path: Path) -> None:
    report, packed = json.loads(path.read_text()), path.with_suffix(".safetensors").read_bytes()
    assert report["checkpoint"] == {"bytes": len(packed), "sha256": sha256(packed).hexdigest()}
    assert len(packed) <= LARGEST
    assert report["command"].startswith(f"python -m examples.train_{path.stem}")
    CHECKS[path.stem](report)


def test_every_checkpoint_has_a_report() -> None:
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == {path.stem for path in REPORTS}
