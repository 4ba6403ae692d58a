"""The frozen values: references, threat models, digests."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.errors import ConfigError, must, suggestion
from robench.spec import Artifact, Cell, Estimate, Ref, Settings, ThreatModel, canonical, sha256

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda n: n not in __import__("keyword").kwlist)


@given(NAMES, st.dictionaries(NAMES, LITERALS, max_size=4))
def test_a_reference_survives_its_text(name, args):
    ref = Ref.of(name, **args)
    assert Ref.parse(str(ref)) == ref
    assert str(Ref.parse(str(ref))) == str(ref)


def test_a_reference_is_canonical():
    assert str(Ref.parse(" pgd( steps=40,loss='dlr' ) ")) == "pgd(loss='dlr', steps=40)"
    assert Ref.parse("pgd()") == Ref.parse("pgd") == Ref("pgd")
    assert Ref.parse("noise(eps=8/255)").kwargs == {"eps": 8 / 255}
    assert Ref.parse("art:FastGradientMethod(eps=0.1)").name == "art:FastGradientMethod"
    assert Ref.parse("a(name='x')").kwargs == {"name": "x"}


@pytest.mark.parametrize(
    "text",
    ["", "pgd(40)", "pgd(**{})", "pgd(steps=", "pgd(steps=abs(-1))", "pgd(steps=__import__('os').getcwd())", "pgd(s=x)",
     "pgd(s={1: 2})", "pgd(s=8/0)", "pgd(s=1e400)", "pgd(s=1e300/1e-300)",
     f"pgd(s={'-' * 5000}1)", f"pgd(s={'(' * 300}1)"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ConfigError, match=r"a reference must be|an argument must be"):
        Ref.parse(text)


def test_an_argument_given_twice_is_refused():
    with pytest.raises(ConfigError):
        Ref.parse("pgd(steps=1, steps=2)")


def test_nothing_in_a_reference_is_evaluated(tmp_path):
    planted = tmp_path / "planted"
    with pytest.raises(ConfigError):
        Ref.parse(f"pgd(a=open({str(planted)!r}, 'w'))")
    assert not planted.exists()


def test_defaults_do_not_replace_what_was_said():
    assert Ref.parse("pgd(steps=3)").with_defaults({"steps": 40, "restarts": 1}) == Ref.of("pgd", steps=3, restarts=1)


@pytest.mark.parametrize(
    ("text", "norm", "eps"),
    [("linf(8/255)", "linf", 8 / 255), ("l2(0.5)", "l2", 0.5), ("linf(inf)", "linf", math.inf), ("l0(12)", "l0", 12.0),
     ("linf(0)", "linf", 0.0), ("linf(1)", "linf", 1.0), ("l1( 10 )", "l1", 10.0),
     ("linf(2.5/255)", "linf", 2.5 / 255), ("linf(0.03)", "linf", 0.03), ("l2(1e-2)", "l2", 0.01),
     ("linf(8/255.0)", "linf", 8 / 255), ("l2( 1 / 3 )", "l2", 1 / 3), ("l2(.5)", "l2", 0.5)],
)  # fmt: skip
def test_threat_models_are_read(text, norm, eps):
    threat = ThreatModel.parse(text)
    assert (threat.norm, threat.eps) == (norm, eps)
    assert ThreatModel.parse(str(threat)) == threat


@pytest.mark.parametrize(
    ("text", "said"),
    [("linf(8)", "did you mean 8/255"), ("l3(1)", "a threat model must be"), ("linf", "a threat model must be"),
     ("linf(8/255", "a threat model must be"), ("linf(-1/255)", "at least 0"), ("linf(x)", "a number or ratio"),
     ("linf(1/0)", "a number or ratio"), ("linf()", "a number or ratio"), ("l2(nan)", "eps must be"),
     ("linf(1e400)", "a number or ratio"),
     ("l2(1e999999999)", "a number or ratio"), ("linf(1/2/3)", "a number or ratio"), ("l2(1e-2))", "a number or ratio"),
     ("l2(1_0)", "a number or ratio")],
)  # fmt: skip
def test_what_is_no_threat_model_is_refused_with_a_remedy(text, said):
    with pytest.raises(ConfigError, match=said):
        ThreatModel.parse(text)


def test_a_threat_model_moves_to_another_eps():
    assert str(ThreatModel.parse("l2(0.5)").at("1/4")) == "l2(1/4)"


def cell(**changes):
    model = Artifact("model", Ref.of("zoo", name="standard"), label="standard")
    base = Cell(Ref.of("clean"), "1", model, Artifact("data", Ref.of("digits")))
    return dataclasses.replace(base, **changes)


def test_digests_are_stable_across_versions_of_the_code():
    assert cell().model.digest == sha256(canonical([3, "model", "zoo(name='standard')", "1", []]))
    parts = [3, "clean", "1", cell().model.digest, cell().data.digest, "", [], 0, [0, 1]]
    settings = {"width": 64, "search_precision": "float32"}
    assert cell().digest == sha256(canonical([*parts, settings]))


def test_labels_stay_out_of_a_digest_and_everything_else_is_in():
    relabelled = dataclasses.replace(cell().model, label="other")
    assert cell(model=relabelled).digest == cell().digest
    other = Artifact("model", Ref.of("zoo", name="trap"))
    changes = [{"scenario": Ref.of("evasion")}, {"version": "2"}, {"model": other}, {"data": other}, {"condition": "prune"},
               {"extra": (other,)}, {"seed": 1}, {"shard": (0, 2)}, {"settings": Settings(width=32)}]  # fmt: skip
    digests = {cell(**change).digest for change in changes}
    assert len(digests | {cell().digest}) == len(changes) + 1
    assert {next(iter(change)) for change in changes} == {f.name for f in dataclasses.fields(Cell)}


def test_only_listed_widths_are_taken():
    with pytest.raises(ConfigError, match=r"width must be one of .* got 65"):
        Settings(width=65)


def test_values_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Ref("a").name = "b"


def test_error_texts_read_alike():
    assert must("eps", "at least 0", -1, "use 8/255") == "eps must be at least 0, got -1; use 8/255"
    assert suggestion("pgdd", ["pgd", "fgsm"]) == "did you mean 'pgd'?"
    assert suggestion("zzz", ["pgd", "fgsm"]) == "known: fgsm, pgd"


def test_an_exact_estimate_prints_no_interval():
    assert str(Estimate.exact(12.5)) == "12.5"
    assert str(Estimate(0.5, 0.4, 0.6, 100)) == "0.5000 [0.4000, 0.6000] (n=100)"
