"""A loaded model names the input that is wrong, and runs nothing but a checked artifact."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends.base import Engine
from compiler.artifact import EngineChoice, Manifest, Port
from compiler.runtime.loaded import LoadedModel, load
from compiler.runtime.signature import InputError, Signature
from ir import DimRange
from ir.errors import MissingError, ResourceError, UntrustedError, UsageError
from tests.compiler.artifacts import (
    FakeBackend,
    FakeEngine,
    no_sync,  # noqa: F401
    publish,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return publish(tmp_path / "tiny.penstock")


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()
    real = backends.backend
    monkeypatch.setattr(backends, "backend", lambda name: fake if name == "fake" else real(name))
    return fake


@pytest.fixture
def model(path: Path) -> LoadedModel:
    return load(path)


def inputs(batch: int = 2, seq: int = 3, **changed: Any) -> dict[str, Any]:
    usual = {
        "x": torch.arange(batch * seq * 4, dtype=torch.float32).reshape(batch, seq, 4),
        "mask": torch.ones(batch, seq, dtype=torch.int64),
        "sum": torch.ones(4),
    }
    return {**usual, **changed}


# --- loading ---------------------------------------------------------------------------------------


def test_call_by_name_and_by_place(model: LoadedModel) -> None:
    given_ = inputs()
    want = {"y": given_["x"], "state:sum": torch.full((4,), 2.0)}
    for got in (
        model(**given_),
        model(*given_.values()),
        model(given_["x"], mask=given_["mask"], **{"state:sum": given_["sum"]}),
    ):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_states_are_explicit(model: LoadedModel) -> None:
    state = model.initial_state()
    for _ in range(3):
        got = model(**{**inputs(), **state})
        state = {"sum": got["state:sum"]}
    assert torch.equal(state["sum"], torch.full((4,), 8.0))
    model.initial_state()["sum"].zero_()
    assert torch.equal(model.initial_state()["sum"], torch.ones(4))


def test_facts_and_close(path: Path, backend: FakeBackend) -> None:
    with load(path) as model:
        assert backend.threads == 2  # what it was compiled with
        facts = model.facts()
        assert (facts["engine"], facts["engine_version"], facts["nodes"]) == ("fake", "1.0", 3)
        assert model.manifest.name == "tiny"
    model.close()
    assert model.facts()["id"] == model.id
    with pytest.raises(UsageError, match="closed"):
        model(**inputs())
    load(path, threads=5, expect=model.id)
    assert backend.threads == 5


def test_another_engine_is_built_from_the_graph(path: Path) -> None:
    model = load(path, engine_override="reference")
    assert torch.equal(model(**inputs())["y"], inputs()["x"])
    facts = model.facts()
    assert (facts["engine"], facts["compiled_with"]) == ("reference", "fake 1.0")
    assert load(path, engine_override="fake").facts()["engine"] == "fake"


def test_facts_of_another_engine_outlive_the_files_it_was_built_from(path: Path) -> None:
    with load(path, engine_override="onnxruntime") as model:
        assert int(model.facts()["nodes"]) >= 1
    assert "nodes" not in model.facts()


def test_what_load_refuses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no artifact"):
        load(path.parent / "none.penstock")
    with pytest.raises(UsageError, match="threads"):
        load(path, threads=0)
    with pytest.raises(UsageError, match="no backend"):
        load(path, engine_override="faked")
    with pytest.raises(UntrustedError, match="expected"):
        load(path, expect="0" * 64)
    monkeypatch.setattr(backends, "backend", lambda _: FakeBackend(version=None))
    with pytest.raises(MissingError, match="not installed") as caught:
        load(path)
    assert caught.value.hint == "pip install fake"


def test_damaged_artifact_never_reaches_the_engine(
    path: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "load", lambda *_: pytest.fail("loaded"))
    (path / "engine.onnx").write_bytes(b"x" * 256)
    with pytest.raises(UntrustedError, match=r"engine\.onnx"):
        load(path)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(RuntimeError("bad opset\nstack"), MissingError), (MemoryError(), ResourceError), (UsageError("x"), UsageError)],
    ids=["anything", "memory", "ours"],
)
def test_engine_that_fails_to_load(
    path: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, fault: Exception, kind: type[Exception]
) -> None:
    def fail(*_: object) -> Engine:
        raise fault

    monkeypatch.setattr(backend, "load", fail)
    with pytest.raises(kind):
        load(path)


def test_files_changed_while_the_engine_loads(
    path: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []

    def replaced_once(folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        loads.append(folder)
        engine = FakeEngine(folder)
        if len(loads) == 1:
            publish(path, force=True, name="newer")
        return engine

    monkeypatch.setattr(backend, "load", replaced_once)
    assert load(path).manifest.name == "newer"
    assert len(loads) == 2

    def always_changed(folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        (folder / "engine.onnx").write_bytes((folder / "engine.onnx").read_bytes())
        return FakeEngine(folder)

    monkeypatch.setattr(backend, "load", always_changed)
    with pytest.raises(UntrustedError, match="changed while it was loaded"):
        load(path)


def test_threads_share_a_model(model: LoadedModel) -> None:
    faults: list[object] = []

    def run(batch: int) -> None:
        for _ in range(30):
            got = model(**inputs(batch))["y"]
            if not torch.equal(got, inputs(batch)["x"]):
                faults.append(got)

    workers = [threading.Thread(target=run, args=(n,)) for n in (1, 2, 3, 4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults


# --- inputs ------------------------------------------------------------------------------------------


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, torch says
        return torch.nested.nested_tensor([torch.ones(3, 4)])


X = 'input "x": expected f32[batch, seq, 4] with batch in [1, 64], seq in [2, 512]; got '
MASK = 'input "mask": expected i64[batch, seq] with batch in [1, 64], seq in [2, 512]; got '


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": torch.ones(2, 3, 4, dtype=torch.float64)}, X + "f64[2, 3, 4]: the dtype is f64, not f32"),
        ({"x": torch.ones(2, 12)}, X + "f32[2, 12]: it has 2 dims, not 3"),
        ({"x": torch.ones(2, 3, 5)}, X + "f32[2, 3, 5]: dim 2 is 5, not 4"),
        ({"x": torch.ones(0, 3, 4)}, X + "f32[0, 3, 4]: batch = 0 is not within [1, 64]"),
        ({"x": torch.ones(65, 3, 4)}, X + "f32[65, 3, 4]: batch = 65 is not within [1, 64]"),
        ({"x": torch.ones(2, 1, 4)}, X + "f32[2, 1, 4]: seq = 1 is not within [2, 512]"),
        ({"x": torch.ones(2, 3, 4, device="meta")}, X + "f32[2, 3, 4]: it is on meta, not on the CPU"),
        ({"x": torch.ones(2, 3, 4).to_sparse()}, X + "f32[2, 3, 4]: it is not a dense tensor"),
        ({"x": nested()}, X + "f32[?]: it is not a dense tensor"),
        ({"mask": torch.ones(2, 3)}, MASK + "f32[2, 3]: the dtype is f32, not i64"),
        (
            {"mask": torch.ones(2, 4, dtype=torch.int64)},
            MASK + 'i64[2, 4]: seq is 4 here and 3 in input "x"',
        ),
        ({"sum": torch.ones(5)}, 'input "sum": expected f32[4]; got f32[5]: dim 0 is 5, not 4'),
        ({"mask": [[1, 1, 1]] * 2}, 'input "mask": expected a tensor, i64[batch, seq] with'),
        ({"mask": np.ones((2, 3), dtype=object)}, "got a numpy array of object"),
        ({"mask": np.ones((2, 3), dtype="U1")}, "got a numpy array of <U1"),
        ({"mask": None}, 'missing input "mask": expected i64[batch, seq]'),
        ({"masc": torch.ones(1)}, 'there is no input "masc"'),
        ({"state:sum": torch.ones(4)}, 'input "sum" was given twice'),
        ({"state:mask": torch.ones(4)}, 'there is no input "state:mask"'),
    ],
)
def test_wrong_inputs(model: LoadedModel, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        model(**inputs(**changed))
    assert words in caught.value.what
    assert caught.value.exit_code == 2


def test_hints(model: LoadedModel) -> None:
    with pytest.raises(InputError, match='did you mean "mask"'):
        model(**inputs(masc=1))
    with pytest.raises(InputError, match=r"x\.to\(torch\.float32\)"):
        model(**inputs(x=torch.ones(2, 3, 4).half()))
    with pytest.raises(InputError, match=r"missing input \"sum\".*\n.*initial_state\(\)"):
        model(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="4 inputs were given, the model takes 3: x, mask, sum"):
        model(*inputs().values(), torch.ones(1))
    with pytest.raises(InputError, match="given twice"):
        model(torch.ones(2, 3, 4), **inputs())


def test_numpy_and_odd_tensors_are_taken(model: LoadedModel) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    frozen = x.copy()
    frozen.setflags(write=False)
    wide = torch.zeros(4, 3, 2)
    wide[:] = torch.from_numpy(x).permute(2, 1, 0)
    turned, trained = wide.permute(2, 1, 0), torch.nn.Parameter(torch.tensor(x))
    for odd in (x, frozen, x[:, ::-1].copy()[:, ::-1], x.astype(">f4"), turned, trained):
        got = model(**inputs(x=odd))["y"]
        assert torch.equal(got, torch.tensor(x))
        assert not got.requires_grad
    signature = Signature(model.manifest)
    bound = signature.bind((), inputs(x=wide.permute(2, 1, 0).requires_grad_()))
    assert bound["x"].is_contiguous()
    assert not bound["x"].requires_grad
    assert signature.bind((), inputs(x=x))["x"].data_ptr() == x.ctypes.data  # no copy


# --- derived dims ----------------------------------------------------------------------------------


def signature(dims: Mapping[str, DimRange], **shapes: str) -> Signature:
    ports = tuple(Port("input", name, "f32", tuple(filter(None, text.split(";")))) for name, text in shapes.items())
    return Signature(Manifest("m", EngineChoice("fake", "1"), ports, (), dims))


def bind(checks: Signature, *shapes: tuple[int, ...]) -> None:
    checks.bind([torch.empty(shape) for shape in shapes], {})


N = {"n": DimRange(2, 9)}


def test_derived_before_and_after_the_plain_one() -> None:
    for checks, flip in ((signature(N, a="n", b="2*n + 1"), False), (signature(N, a="2*n + 1", b="n"), True)):
        bind(checks, *((7,), (3,)) if flip else ((3,), (7,)))
        with pytest.raises(InputError, match=r"is 8, not 2\*n \+ 1 = 7 \(n = 3\)"):
            bind(checks, *((8,), (3,)) if flip else ((3,), (8,)))


def test_derived_alone_is_solved() -> None:
    checks = signature(N, a="2*n;n - 1")
    bind(checks, (6, 2))
    with pytest.raises(InputError, match=r"no n makes 2\*n = 7"):
        bind(checks, (7, 2))
    with pytest.raises(InputError, match=r"n = 20 is not within \[2, 9\]"):
        bind(checks, (40, 2))
    with pytest.raises(InputError, match=r"dim 1 is 3, not n - 1 = 2"):
        bind(checks, (6, 3))


def test_solved_with_the_help_of_another() -> None:
    dims = {**N, "m": DimRange(0, 50)}
    checks = signature(dims, a="m + n", b="n", c="m")
    bind(checks, (7,), (3,), (4,))
    checks = signature(dims, a="n;2*m + 3*n", b="m*n")
    bind(checks, (3, 17), (12,))
    with pytest.raises(InputError, match="no m makes"):
        bind(checks, (3, 18), (12,))
    with pytest.raises(InputError, match="dim 0 is 13"):
        bind(checks, (3, 17), (13,))
    half = signature(N, a="(1/2)*n")
    bind(half, (3,))
    with pytest.raises(InputError, match="n = 10"):
        bind(half, (5,))


def test_what_cannot_be_solved_must_still_be_equal() -> None:
    checks = signature(N, a="FloorDiv(n, 2)", b="FloorDiv(n, 2)")
    bind(checks, (3,), (3,))
    with pytest.raises(InputError, match="is 4 here and 3"):
        bind(checks, (3,), (4,))
    known = signature(N, a="FloorDiv(n, 2)", b="n")
    bind(known, (3,), (7,))
    with pytest.raises(InputError, match="is 4, not"):
        bind(known, (4,), (7,))


def test_scalars_and_no_inputs() -> None:
    bind(signature({}, a=""), ())
    assert signature({}).bind((), {}) == {}
    bind(signature({"n": DimRange(0, None)}, a="n"), (10**6,))


@given(st.integers(0, 12), st.integers(0, 30), st.integers(0, 12))
def test_accepts_exactly_the_sizes_of_the_manifest(a: int, b: int, c: int) -> None:
    want = 2 <= c <= 9 and a == c and b == 2 * c + 1
    try:
        bind(signature(N, a="n", b="2*n + 1", c="n"), (a,), (b,), (c,))
        assert want
    except InputError:
        assert not want
