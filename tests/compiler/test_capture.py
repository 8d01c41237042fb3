"""What capture refuses, in which words, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiler.capture.capture import capture, capture_file
from compiler.capture.inputs import flatten_inputs
from compiler.spec import Dim, ModelSpec
from ir import DimRange, interpret
from ir.errors import UnsupportedError, UntrustedError, UsageError
from tests.compiler.refusing import BATCH, Model, plain, refused, rows, unsupported

# --- the model and its inputs ---------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = Model(plain).train()
    model.layer.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    capture(model, rows(), dynamic_shapes={"x": {0: BATCH}})
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_is_traced_in_eval_mode() -> None:
    graph = capture(Model(plain).train(), rows())
    (dropout,) = [n for n in graph if n.op.name == "aten.dropout.default"]
    assert dropout.args[2] is False


def test_name_dims_and_inputs_are_the_users() -> None:
    class Named(nn.Module):
        def forward(
            self,
            Pixels: Tensor,  # noqa: N803  (torch would write it in lower case)
            *,
            cache: dict[str, list[Tensor]],
            use: bool = True,
        ) -> dict[str, Tensor]:
            return {"sum": Pixels + cache["k"][0] + cache["k"][1] if use else Pixels}

    x = torch.randn(3, 4)
    inputs = {"Pixels": x, "cache": {"k": [x, x + 1]}, "use": True}
    rows_axis = {0: Dim("rows", 1, 9)}
    for shapes in ({"Pixels": rows_axis, "cache": rows_axis}, {"Pixels": rows_axis, "cache": {"k": [rows_axis] * 2}}):
        graph = capture(ModelSpec(Named(), inputs, shapes, name="given"))
        assert graph.name == "given"
        assert [name for name, _ in graph.arguments("input")] == ["Pixels", "cache_k_0", "cache_k_1"]
        assert graph.dims == {"rows": DimRange(1, 9)}
        assert list(interpret(graph, flatten_inputs(inputs))) == ["sum"]


def test_inputs_by_position() -> None:
    graph = capture(Model(plain), [rows()["x"]])
    assert [name for name, _ in graph.arguments("input")] == ["x"]
    assert graph.name == "Model"


def test_no_parameters_is_a_model_too() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    assert len(capture(Nothing(), rows())) == 2


def test_a_negative_axis_and_a_dim_from_the_end() -> None:
    graph = capture(Model(lambda self, x: x * 2), rows(), dynamic_shapes={"x": {-2: BATCH}})
    assert graph.dims == {"batch": DimRange(1, 64)}


def test_wrong_arguments_are_all_named() -> None:
    assert refused(Model(plain), {"y": torch.zeros(3, 4)}, {"z": {0: BATCH}}) == (
        "the inputs do not fit the model:\n"
        "  - forward has no argument 'y'; known: x\n"
        "  - no example input for argument 'x' of forward\n"
        "  - dynamic_shapes names 'z', which is no example input; known: y"
    )
    assert refused(Model(plain), [torch.zeros(3, 4)] * 2) == "2 example inputs, but forward takes 1: x"
    assert refused(Model(plain), 7).startswith("example inputs are int")
    assert refused(nn.Linear, rows()) == "a model is a torch.nn.Module, not type"
    with pytest.raises(UsageError, match="capture needs example inputs"):
        capture(Model(plain))


def test_inputs_of_strange_types() -> None:
    assert refused(Model(plain), {"x": object()}).startswith("example input x is a object")
    assert refused(Model(plain), {"x": [torch.zeros(2), {"a": {1, 2}}]}).startswith("example input x[1]['a'] is a set")


def test_weights_and_inputs_elsewhere() -> None:
    with torch.device("meta"):
        model = Model(plain)
    assert refused(model) == (
        "without data (meta device): weight layer.weight, weight layer.bias, weight kept\n"
        "  hint: load the weights first"
    )
    assert "meta device): input x\n" in refused(Model(plain), {"x": torch.zeros(3, 4, device="meta")})


# --- constructs -----------------------------------------------------------------------------------


def test_every_data_dependent_construct_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def many(self: Any, x: Tensor) -> Tensor:
        y = self.layer(x)
        if y.mean() > 0.5:
            y = y + 1
        k = y.sum().item()
        if k > 3:
            y = y * 2
        if y.max() > 1e9:
            raise ValueError("too large")
        while y.norm() > 1:
            y = y / 2
        return y

    branch = "    hint: use torch.cond(pred, then, otherwise, operands) or torch.where"
    assert unsupported(many) == [
        "4 construct(s) of the model cannot be carried:",
        "  - a branch on a value known only at run time at LINE: `if y.mean() > 0.5:`",
        branch,
        "  - a branch on a value known only at run time at LINE: `if k > 3:`",
        branch,
        "  - a branch on a value known only at run time at LINE: `if y.max() > 1e9:`",
        branch,
        "  - a loop that depends on the data at LINE: `while y.norm() > 1:`",
        "    hint: loop a fixed number of times, work on all rows at once, or use torch.while_loop",
    ]
    assert capfd.readouterr() == ("", "")  # torch's own words stay inside


def test_a_loop_over_found_rows() -> None:
    def loop(self: Any, x: Tensor) -> Tensor:
        for i in (x[:, 0] > 0).nonzero():
            x = x + i
        return x

    assert unsupported(loop)[1] == "  - a loop that depends on the data at LINE: `for i in (x[:, 0] > 0).nonzero():`"


def test_what_the_importer_refuses_is_listed_too() -> None:
    def scans(self: Any, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        _, y = scan(lambda c, row: (c + row, c * row), torch.zeros(4), x)
        return y

    assert unsupported(scans)[:1] == ["1 construct(s) of the model cannot be carried:"]
    assert unsupported(scans)[2] == "    hint: unroll it, or write it as torch while_loop"


def test_branches_that_do_not_agree() -> None:
    def disagree(self: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.clone(), lambda x: x.double(), (x,))

    (_, fault, hint) = unsupported(disagree)
    assert "expected same dtype but got torch.float32 and torch.float64" in fault
    assert "torch.cond(x.sum() > 0" in fault
    assert ".clone() what passes through" in hint


def test_an_output_that_is_no_tensor() -> None:
    class Answer:
        pass

    assert unsupported(lambda self, x: Answer())[1:] == [
        "  - a Answer among the inputs or outputs",
        "    hint: use tensors only (transformers: use_cache=False; or wrap the model)",
    ]


def test_operators_without_shape_rule() -> None:
    library = torch.library.Library("penstock_test_capture", "FRAGMENT")
    for op in ("f", "g"):
        library.define(f"{op}(Tensor x) -> Tensor")
        library.impl(op, lambda x: x + 1, "CPU")
    ops = torch.ops.penstock_test_capture
    lines = unsupported(lambda self, x: ops.f(x) + ops.g(x))
    assert lines[0] == "2 construct(s) of the model cannot be carried:"
    assert lines[1].startswith("  - penstock_test_capture::f has no shape rule (fake kernel) at LINE")
    assert lines[4].endswith('@torch.library.register_fake("penstock_test_capture::g")')


def test_a_fault_of_the_model_itself() -> None:
    def wrong(self: Any, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 5))

    assert unsupported(wrong) == [
        "the model itself fails on the example inputs: RuntimeError: shape '[-1, 5]' is invalid for input of size 12",
        "  at LINE: `return self.layer(x.reshape(-1, 5))`",
        "  hint: model(**example_inputs) must work before it can be captured",
    ]


def test_a_transformers_choice_of_experts_names_the_option() -> None:
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, num_local_experts=2,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config, experts_implementation="eager")
    text = refused(model, {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "use_cache": False}, {}, UnsupportedError)
    assert "transformers/models/mixtral/modeling_mixtral.py" in text
    assert 'hint: build the model with experts_implementation="batched_mm"' in text


# --- state ----------------------------------------------------------------------------------------


def test_a_buffer_reached_through_a_list() -> None:
    def hidden(self: Any, x: Tensor) -> Tensor:
        self.alias[0].add_(1)
        return x + self.kept

    (_, fault, hint) = unsupported(hidden)
    assert fault.startswith(
        "  - a tensor that a plain Python object holds (lifted_tensor_0) is changed in place at LINE"
    )
    assert "register_buffer() it on the module" in hint


def test_two_buffers_over_one_memory() -> None:
    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.zeros(4)
            self.register_buffer("whole", whole)
            self.register_buffer("part", whole[:2])

        def forward(self, x: Tensor) -> Tensor:
            self.part.add_(1)
            return x + self.whole

    text = refused(Overlapping(), kind=UnsupportedError)
    assert "whole and part share memory, and the model changes it in place" in text


def test_state_and_input_of_one_name() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("x", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.x.add_(1)
            return x + self.x

    assert "x is both an input and a buffer that the model changes" in refused(Clash(), kind=UnsupportedError)


def test_in_place_on_own_results_needs_no_state() -> None:
    def inside(self: Any, x: Tensor) -> Tensor:
        y = self.layer(x)
        y[:, 0] = 0
        return y.relu_()

    graph = capture(Model(inside), rows(), dynamic_shapes={"x": {0: BATCH}})
    assert not graph.initial
    assert all(not node.op.effects for node in graph if node.op.name != "return")


def test_autocast_is_written_out() -> None:
    def lower(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(x)

    model = Model(lower).eval()
    graph = capture(model, rows())
    with torch.no_grad():
        torch.testing.assert_close(interpret(graph, rows())["output"], model(**rows()))


# --- files ----------------------------------------------------------------------------------------


def test_pt2_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    model = Model(plain).eval()
    torch.export.save(torch.export.export(model, (), rows()), path)
    with pytest.raises(UntrustedError) as caught:
        capture_file(path)
    assert caught.value.exit_code == 8
    assert "reading one can run code" in str(caught.value)
    assert "--trust-pickle" in caught.value.hint
    graph = capture_file(path, trust_pickle=True)
    assert graph.name == "model"
    with torch.no_grad():
        torch.testing.assert_close(interpret(graph, rows())["output"], model(**rows()))


def test_pt2_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        capture_file(tmp_path / "none.pt2")
    (tmp_path / "broken.pt2").write_bytes(b"no zip")
    with pytest.raises(UntrustedError, match=r"torch\.export cannot read"):
        capture_file(tmp_path / "broken.pt2", trust_pickle=True)
