"""The version of a protocol joins the versions of all that it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robench import catalog, parts

PROBING = {"bpda", "cascade", "climb", "engine", "escalation", "masking", "probing", "thresholds"}
MADE_OF = {
    "robench-standard": PROBING | {"dense", "randomised", "apgd", "apgd_t", "fab_t", "square", "transfer"},
    "robench-deep": PROBING | {"randomised", "apgd", "apgd_t", "fab_t", "square", "transfer"},
    "compressed-union": PROBING | {"dense", "randomised", "apgd", "square"},
    "autoattack-standard": {"engine", "apgd", "apgd_t", "fab_t", "square"},
    "autoattack-plus": {"engine", "apgd", "apgd_t", "fab", "fab_t", "square"},
    "autoattack-rand": {"engine", "apgd"},
    "robench-l0": {"engine", "pgd_l0", "sigma_zero", "sparse_rs"},
    "curve": {"engine", "ddn", "deepfool", "ead", "fab_t", "fmn", "sigma_zero"},
}


def names(version: str) -> set[str]:
    return {part.rpartition(" ")[0] for part in version.split("|")[1:]}


def test_every_protocol_is_here():
    assert set(MADE_OF) == {name for name, entry in catalog.ATTACKS.items() if entry.facts.get("protocol")}


@pytest.mark.parametrize("name", MADE_OF)
def test_a_protocol_names_what_it_is_made_of(name):
    assert names(catalog.ATTACKS[name].version) >= MADE_OF[name]


@pytest.mark.parametrize(("name", "absent"), [("curve", {"masking", "square"}), ("autoattack-standard", {"ddn", "masking"})])
def test_and_nothing_that_it_does_not_use(name, absent):
    assert not names(catalog.ATTACKS[name].version) & absent


@pytest.mark.parametrize("module", ["robench.masking", "robench.attacks._escalation", "robench.thresholds"])
@pytest.mark.parametrize("name", ["robench-standard", "compressed-union", "curve"])
def test_a_change_of_a_part_changes_the_protocols_that_use_it(monkeypatch, module, name):
    target, before = catalog.ATTACKS[name].target, parts.parts.__wrapped__(catalog.ATTACKS[name].target)
    read = parts.module_of
    monkeypatch.setattr(parts, "module_of", lambda m: replace(read(m), version=99) if m == module else read(m))
    assert (parts.parts.__wrapped__(target) != before) == (name != "curve")


def test_an_attack_alone_has_its_own_version_only():
    assert catalog.ATTACKS["apgd"].version == str(catalog.ATTACKS["apgd"].facts["version"])
