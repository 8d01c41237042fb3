"""tinylm learns, the same way each time; its checkpoint comes back as written and nothing else is taken for one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from examples import train_tinylm
from examples.tinylm import FORMAT, Config, NextByte, TinyLM, load_tinylm, pack_tinylm
from examples.tinylm_data import START, Corpus, part_of, read_corpus, windows
from examples.train_tinylm import History, Settings, Trainer, depths, initialise
from ir.errors import PenstockError, UntrustedError, UsageError

MICRO = Config(layers=3, width=32, heads=4, kv_heads=2, hidden=48, context=32)
CPU = torch.device("cpu")
QUICK = Settings(steps=30, batch=8, warmup=5, rate=1e-2, windows=8, layer_dropout=0.3)


def silent(step: int, note: str) -> None:
    pass


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    text = "".join(f"def f{i}(x):\n    return x + {i % 7}\n\n\n" for i in range(400)).encode()
    bytes_ = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return Corpus(bytes_[:9000], bytes_[9000:11_000], bytes_[11_000:], {}, "")


def trained(corpus: Corpus, settings: Settings) -> tuple[TinyLM, History]:
    model = TinyLM(MICRO)
    initialise(model, settings.seed)
    return model, Trainer(model, corpus, settings, CPU).train(silent)


def same_weights(a: TinyLM, b: TinyLM) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(scope="module")
def first(corpus: Corpus) -> tuple[TinyLM, History]:
    return trained(corpus, QUICK)


# --- training -------------------------------------------------------------------------------------


def test_the_loss_falls_at_every_depth(corpus: Corpus, first: tuple[TinyLM, History]) -> None:
    model, history = first
    assert history.steps == QUICK.steps and history.ended == "steps"
    assert history.curve[-1]["train_bits_per_byte"] < 0.75 * history.curve[0]["train_bits_per_byte"]
    untrained = TinyLM(MICRO)
    initialise(untrained, QUICK.seed)
    rows = windows(corpus.held_out, MICRO.context, 8)
    before, after = depths(untrained, rows, CPU), depths(model, rows, CPU)
    assert [row["depth"] for row in after] == [1, 2, 3]
    assert all(b["bits_per_byte"] < 0.75 * a["bits_per_byte"] for a, b in zip(before, after, strict=True))
    assert after[-1]["agreement"] == 1.0


def test_a_seed_gives_one_model(corpus: Corpus, first: tuple[TinyLM, History]) -> None:
    model, history = first
    again, same = trained(corpus, QUICK)
    assert same_weights(model, again)
    without = [{k: v for k, v in point.items() if k != "seconds"} for point in history.curve]
    assert without == [{k: v for k, v in point.items() if k != "seconds"} for point in same.curve]
    other, _ = trained(corpus, replace(QUICK, seed=1, steps=2))
    assert not same_weights(other, trained(corpus, replace(QUICK, steps=2))[0])


def test_depths_are_those_of_the_forward(corpus: Corpus, first: tuple[TinyLM, History]) -> None:
    model, _ = first
    rows = windows(corpus.held_out, MICRO.context, 8)
    assert depths(model, rows, CPU)[-1]["bits_per_byte"] == pytest.approx(-NextByte([rows])(model), abs=1e-4)


def test_no_byte_sees_a_later_one(first: tuple[TinyLM, History]) -> None:
    model, _ = first
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    changed = torch.cat([tokens[:, :12], (tokens[:, 12:] + 1) % 256], dim=1)
    torch.testing.assert_close(model(tokens)[:, :12], model(changed)[:, :12])
    assert not torch.equal(model(tokens)[:, 12:], model(changed)[:, 12:])


def test_minutes_end_a_long_training(corpus: Corpus) -> None:
    _, history = trained(corpus, replace(QUICK, steps=100_000, minutes=0.5 / 60))
    assert history.ended == "minutes"
    assert history.steps < 100_000 and history.curve[-1]["step"] == history.steps


def test_a_diverging_training_says_so(corpus: Corpus) -> None:
    with pytest.raises(ArithmeticError, match="use a lower --rate"):
        trained(corpus, replace(QUICK, rate=1e12, warmup=0, clip=1e12))


def test_every_depth_takes_its_turn(corpus: Corpus) -> None:
    trainer = Trainer(TinyLM(MICRO), corpus, replace(QUICK, layer_dropout=0.0), CPU)
    rows = windows(corpus.fit, MICRO.context, 2)
    got = [trainer._losses(rows[:, :-1], rows[:, 1:], step)[1].item() / torch.tensor(2.0).log() for step in (0, 1, 2)]
    want = [row["bits_per_byte"] for row in depths(trainer.model, rows, CPU)]
    assert [float(g) for g in got] == pytest.approx([want[0], want[1], want[0]], abs=1e-3)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_a_checkpoint_and_what_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "lib"
    for index in range(60):
        write(sources / f"m{index}.py", f"VALUE = {index}\n" * 30)
    monkeypatch.setattr(train_tinylm, "Config", lambda: MICRO)
    out = tmp_path / "made" / "t.safetensors"
    said = ["--steps", "3", "--batch", "2", "--device", "cpu", "--sources", str(sources), "--out", str(out)]
    assert train_tinylm.main(said) == 0
    assert "held out" in capsys.readouterr().out
    model, report = load_tinylm(out), json.loads(out.with_suffix(".json").read_text())
    assert report["command"] == "python -m examples.train_tinylm " + " ".join(said)
    assert report["checkpoint"] == {"bytes": out.stat().st_size, "sha256": sha256(out.read_bytes()).hexdigest()}
    assert report["model"] == {**asdict(MICRO), "parameters": sum(p.numel() for p in model.parameters())}
    assert report["sources"]["sha256"] == read_corpus(sources).digest
    rows = windows(read_corpus(sources).held_out, MICRO.context, Settings().windows)
    assert depths(model, rows, CPU) == report["held_out"]["depths"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["t.json", "t.safetensors"]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (["--steps", "0"], "--steps must be more than 0"),
        (["--rate", "nan"], "--rate must be more than 0"),
        (["--exit-share", "0.6"], "the full depth weighs at least half"),
        (["--layer-dropout", "1"], "--layer-dropout must lie in 0..1"),
    ],
)
def test_senseless_settings_are_refused(said: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_tinylm.main(said)
    assert answer in capsys.readouterr().err


def test_a_python_without_sources_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_tinylm.main(["--device", "cpu", "--sources", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "has no Python sources for fit, validation, held_out" in capsys.readouterr().err


# --- data -----------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_parts_of_known_files_never_change() -> None:
    parts = {
        "held_out": ("functools.py", "email/header.py", "traceback.py"),
        "validation": ("bisect.py", "textwrap.py", "unittest/suite.py"),
        "fit": ("ast.py", "json/decoder.py", "test/test_functools.py"),
    }
    assert {part: [part_of(name) for name in names] for part, names in parts.items()} == {p: [p] * 3 for p in parts}


def test_the_split_is_disjoint_and_depends_on_paths_alone(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for index in range(60):
            write(tmp_path / folder / f"m{index}.py", f"{folder}{index}\n")
        write(tmp_path / folder / "site-packages" / "foreign.py", "foreign\n")
    write(tmp_path / "b" / "later.py", "new in another version\n")
    a, b = read_corpus(tmp_path / "a"), read_corpus(tmp_path / "b")
    names = [name for part in a.files.values() for name in part]
    assert len(names) == len(set(names)) == 60
    assert a.digest != b.digest
    for part, inside in a.files.items():
        assert inside and list(inside) == sorted(inside)
        assert set(inside) == set(b.files[part]) - {"later.py"}
        text = bytes(getattr(a, part).tolist())
        assert text == b"".join(bytes([START]) + (tmp_path / "a" / name).read_bytes() for name in inside)


def test_tests_of_the_library_are_never_judged() -> None:
    assert {part_of(f"test/test_{i}.py") for i in range(200)} | {part_of(f"a/tests/{i}.py") for i in range(200)} == {
        "fit"
    }
    assert {part_of(f"m{i}.py") for i in range(200)} == {"fit", "validation", "held_out"}


def test_windows_do_not_overlap() -> None:
    text = torch.arange(100, dtype=torch.uint8)
    assert windows(text, 9, 100).flatten().tolist() == list(range(100))
    assert windows(text, 9, 5)[:, 0].tolist() == [0, 20, 40, 60, 80]
    with pytest.raises(ValueError, match="less than one window"):
        windows(text, 100, 1)


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_comes_back(tmp_path: Path, first: tuple[TinyLM, History]) -> None:
    model, _ = first
    path = tmp_path / "t.safetensors"
    path.write_bytes(pack_tinylm(model, {"note": "kept"}))
    back = load_tinylm(path)
    assert back.config == MICRO and not back.training
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight.half().float())


Tensors = dict[str, Tensor]


def _nan(weights: Tensors) -> Tensors:
    return {**weights, "norm.weight": torch.full_like(weights["norm.weight"], float("nan"))}


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "norm.weight"}, "missing or foreign: norm.weight"),
        (lambda w: {**w, "extra": torch.zeros(1)}, "missing or foreign: extra"),
        (lambda w: {**w, "norm.weight": torch.zeros(31).half()}, r"norm.weight is \[31\], not \[32\]"),
        (lambda w: {**w, "norm.weight": torch.zeros(32)}, "norm.weight is torch.float32, not torch.float16"),
        (_nan, "norm.weight is not finite"),
    ],
)
def test_foreign_weights_are_refused(
    tmp_path: Path, first: tuple[TinyLM, History], change: Callable[[Tensors], Tensors], answer: str
) -> None:
    packed = change(load(pack_tinylm(first[0], {})))
    path = tmp_path / "t.safetensors"
    path.write_bytes(save(packed, {"format": FORMAT, "config": json.dumps(asdict(MICRO))}))
    with pytest.raises(UntrustedError, match=answer):
        load_tinylm(path)


@pytest.mark.parametrize(
    "sizes",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({**asdict(MICRO), "layers": -1}),
        json.dumps({**asdict(MICRO), "layers": 10**9}),
        json.dumps({**asdict(MICRO), "layers": True}),
        json.dumps({**asdict(MICRO), "width": 32.0}),
        json.dumps({**asdict(MICRO), "heads": 5}),
        json.dumps({**asdict(MICRO), "kv_heads": 3}),
        json.dumps({**asdict(MICRO), "eps": float("nan")}),
        json.dumps({**asdict(MICRO), "surprise": 1}),
        json.dumps({**asdict(MICRO), "hidden": 1 << 16}),
    ],
)
def test_sizes_that_are_none_are_refused(tmp_path: Path, sizes: str) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(save({"norm.weight": torch.zeros(32).half()}, {"format": FORMAT, "config": sizes}))
    with pytest.raises(UntrustedError, match="this is no checkpoint of format 'tinylm 1'"):
        load_tinylm(path)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, first: tuple[TinyLM, History]) -> None:
    whole = pack_tinylm(first[0], {})
    contents = {
        "empty": b"",
        "short": whole[:-1],
        "text": b"not weights at all",
        "pickle": b"\x80\x04\x95" + bytes(100),
        "huge": struct.pack("<Q", 1 << 62) + whole[8:],
        "other": save({"a": torch.zeros(1)}, {"format": "something else"}),
        "bare": save({"a": torch.zeros(1)}),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UntrustedError, match="this is no checkpoint") as caught:
            load_tinylm(path)
        assert "python -m examples.train_tinylm" in caught.value.hint
    for missing in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="there is no checkpoint"):
            load_tinylm(missing)
    assert issubclass(UntrustedError, PenstockError)
