import pytest

from ir.errors import UsageError
from passes import PASSES, Quantize, parse_passes, show_pass


@pytest.mark.parametrize(
    "text",
    [
        "quantize",
        'quantize{activations="dynamic", skip=["head*", "a,b{}"], keep=2, max-error=0.5}',
        "fold-constants{max-bytes=0}",
    ],
)
def test_text_form_reads_back(text: str) -> None:
    (pass_,) = parse_passes(text, PASSES)
    assert parse_passes(show_pass(pass_), PASSES) == [pass_]
    assert show_pass(pass_) == text


def test_lists_bare_words_and_underscores() -> None:
    passes = parse_passes("fold-constants, quantize{activations=dynamic,max_error=1}, drop-dead-nodes", PASSES)
    assert [p.name for p in passes] == ["fold-constants", "quantize", "drop-dead-nodes"]
    assert passes[1] == Quantize(activations="dynamic", max_error=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-constant", 'did you mean "fold-constants"?'),
        ("quantize{kep=1}", 'did you mean "keep"?'),
        ("quantize{keep=yes}", "option keep of quantize takes int, not 'yes'"),
        ("quantize{keep=true}", "option keep of quantize takes int, not True"),
        ("quantize{skip=3}", "option skip of quantize takes a list of str, not 3"),
        ("quantize{keep}", "option 'keep' of quantize has no value"),
        ("quantize{keep=1", "cannot read the passes"),
        ("quantize{activations=never}", "activations is one of auto, dynamic, static"),
        ("drop-dead-nodes{x=1}", "it has none"),
    ],
)
def test_faults_name_the_pass_the_option_and_the_nearest(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(text, PASSES)
    assert message in str(caught.value)
