"""Is a robustness number sound? A pure function of the evasion and sentinel rows.

Source: Carlini et al., 2019 (On Evaluating Adversarial Robustness, section 5); Pintor et al., NeurIPS 2022 (indicators of
attack failures); Croce & Hein, ICML 2020 (black-box beating white-box).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from robench.masking import PLACES, diagnose, many, percent, visible
from robench.metrics.alike import is_transfer
from robench.metrics.columns import unfit
from robench.metrics.robust import worst_case
from robench.spec import Ref
from robench.thresholds import ASTRAY, DEFAULTS, UNBRIDGED, UNENDED, Thresholds

SOUND, SUSPICIOUS, INVALID = "sound", "suspicious", "invalid"
RANDOMISED, FEW, UNEXAMINED = "randomised", "not enough samples", "not examined"

UNDECIDED = (RANDOMISED, FEW, UNEXAMINED)
"""Verdicts on numbers against which nothing was found, and for which less speaks than for a sound one."""
DOUBTED = (SUSPICIOUS, INVALID, *UNDECIDED)
"""What the text of a verdict that is not sound begins with: none of these is ranked, and none passes an audit."""
ESCALATED = "escalated: "
"""What a note on a protocol's escalation begins with."""

GRADED = ("white", "all")
"""Access of attacks that saw gradients; ``all`` is a protocol of stages with and without them."""
BLIND = ("score", "decision", "transfer")
"""What a protocol's stages without gradients saw."""
SUBSTITUTE = "substitute"
"""What the sentinel's column ``gradient`` says of a model that has none of its own."""
UNION, QUERIES = "compressed-union", 1000
"""The attack that is everything such a model must meet, and the queries that a search without gradients must be given."""
HEDGED = {"robench-standard": 48}
"""Random survivors, at least, on which a protocol searches without gradients before it ends."""


def worst_status(statuses: Iterable[str]) -> str:
    """The status of several numbers together: the worst one's; ``sound`` where there is none."""
    order = (INVALID, SUSPICIOUS, UNEXAMINED, FEW, RANDOMISED)
    met = set(statuses)
    return next((status for status in order if status in met), SOUND)


def worst_of(texts: Iterable[object]) -> str:
    """The worst status of verdicts given as texts."""
    return worst_status(str(text).partition(":")[0] for text in texts)


@dataclass(frozen=True)
class Verdict:
    """``sound``, or another status with every reason found; only what is sound is ever ranked.

    ``invalid``: there was hardly a measurement, since the attacks failed on most of what they should have broken, or a new
    copy of the model decides otherwise.
    ``suspicious``: there are signs that the number is too high.
    ``randomised``: no such sign, but the outputs are random: attacked through the randomness and judged by many draws, the
    number is an estimate over draws, which is shown beside the others and not ranked among them.
    ``not enough samples``: no such sign, but so few samples that a fault on a fifth of them might not have been met.
    ``not examined``: no such sign, but no new copy of the model answers, so a memory of earlier images would not show.
    """

    status: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What the checks that found nothing can exclude, given their sample sizes, and why protocols escalated."""

    @property
    def sound(self) -> bool:
        """Whether nothing suspicious was found."""
        return self.status == SOUND

    def __str__(self) -> str:
        return self.status if self.sound else f"{self.status}: " + "; ".join(self.reasons)


def verdict(
    evasion_rows: pd.DataFrame,
    sentinel_rows: pd.DataFrame | None,
    thresholds: Thresholds = DEFAULTS,
    *,
    siblings: pd.DataFrame | None = None,
) -> Verdict:
    """Whether the robustness number of one model and threat can be believed.

    Args:
        evasion_rows: Evasion rows of one model, data set and condition; several threats are judged one by one.
        sentinel_rows: Sentinel rows of the same model; without them nothing vouches for its gradients.
        thresholds: See ``Thresholds``.
        siblings: Evasion rows at smaller eps of the same norms, which the number must not exceed.

    Returns:
        ``sound`` only when no reason was found, and all columns of an attack's rows are there.
    """
    lacking = tuple(unfit(evasion_rows))
    if lacking:
        return Verdict(SUSPICIOUS, lacking)
    reasons = [*_sentinel(sentinel_rows, evasion_rows, thresholds)]
    through = _random(sentinel_rows) and bool(_drawn(evasion_rows).any())
    for _, rows in evasion_rows.groupby("threat", sort=True):
        reasons += [*_remembering(rows), *_rows(rows, thresholds), *_rivals(rows, thresholds), *_unended(rows)]
        reasons += _incomplete(rows) if _lent(sentinel_rows) else ()
    everything = evasion_rows if siblings is None else pd.concat([siblings, evasion_rows], ignore_index=True)
    reasons += _rising(everything, set(evasion_rows["threat"]), thresholds)
    unique = tuple(dict.fromkeys(reasons))
    notes = tuple(dict.fromkeys(_notes(sentinel_rows, evasion_rows, thresholds)))
    if _unmeasured(evasion_rows) or any(_remembering(evasion_rows)):
        return Verdict(INVALID, unique, notes)
    if unique:
        return Verdict(SUSPICIOUS, unique, notes)
    if through:
        draws = int(_drawn(evasion_rows).max())
        return Verdict(RANDOMISED, (f"the output is random; attacked through it and judged by {draws} draws",), notes)
    few, memory = _powerless(evasion_rows, thresholds), _uncopied(evasion_rows)
    status = UNEXAMINED if memory else FEW if few else SOUND
    return Verdict(status, tuple(why for why in (memory, few) if why), notes)


def _powerless(evasion: pd.DataFrame, limits: Thresholds) -> str:
    """Why the samples are too few for their silence to mean anything; empty where they are enough."""
    count = _correct(evasion)
    share = visible(count, limits)
    attacked = bool((evasion["eps"] > 0).any()) and count
    if not attacked or share <= limits.power:
        return ""
    return f"a fault on fewer than {percent(share)} of {count} correct samples might not be met"


def _correct(evasion: pd.DataFrame) -> int:
    return int(evasion.loc[evasion["score_clean"] > 0, "sample"].nunique())


def _random(sentinel: pd.DataFrame | None) -> bool:
    return sentinel is not None and "random" in sentinel and bool(_truth(sentinel["random"]).gt(0).any())


def _drawn(evasion: pd.DataFrame) -> pd.Series:
    """By how many draws each row was judged; 0 for the two looks that a deterministic model gets."""
    return _truth(evasion["draws"])


def _unmeasured(rows: pd.DataFrame) -> bool:
    """Whether, under some threat, attacks failed on more than half of the samples that are right when clean."""
    for _, same in rows.groupby("threat"):
        worst = worst_case(same)
        right = worst[worst["score_clean"] > 0]
        if right["unknown"].sum() > len(right) / 2:
            return True
    return False


def access_of(rows: pd.DataFrame) -> dict[str, str]:
    """Attack → what it saw of the model, as declared; who declared gradients and never asked for one saw scores only."""
    graded = _truth(rows["backwards"]).groupby(rows["attack"]).sum() > 0
    declared = rows.groupby("attack")["access"].first()
    return {str(a): "score" if d in GRADED and not graded[a] else str(d) for a, d in declared.items()}


def _truth(column: pd.Series) -> pd.Series:
    """A column of flags as 0/1 floats; what is missing counts as false."""
    return pd.to_numeric(column, errors="coerce").fillna(0.0).astype(float)


def _sentinel(sentinel: pd.DataFrame | None, evasion: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    if sentinel is None or sentinel.empty:
        yield "no sentinel rows: gradients and outputs were not checked"
        return
    failed = sentinel["status"] != "ok"
    if failed.any():
        yield f"sentinel failed on {int(failed.sum())} of {len(sentinel)} samples"
    correct = set(evasion.loc[evasion["score_clean"] > 0, "sample"])
    absent = len(correct - set(sentinel["sample"]))
    if absent:
        yield f"no sentinel looked at {absent} of {len(correct)} correct samples"
    rows = sentinel[~failed]
    if not rows.empty:
        yield from _gradients(rows, evasion, limits)
        yield from _outputs(rows, correct, evasion, limits)
        yield from _ascents(rows[rows["sample"].isin(correct)], evasion, limits)


_MEASURED = (
    *("zero_gradient", "nonfinite_gradient", "gradient_error", "slope", "slope_claimed", "hidden", "evenness"),
    *(place + name for place in PLACES for name in ("mass_error", "mass_noise", "steep")),
    *("line_error", "line_noise", "line_turns"),
)
"""Columns of the sentinel that are judged as an attack judges them that escalates."""


def _gradients(rows: pd.DataFrame, evasion: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    """What ``diagnose`` finds, and whether a twin that lends its gradient predicts as the model does."""
    if _lent(rows):
        known = rows["twin_agrees"].dropna()
        apart = float(known.lt(1).mean()) if len(known) else 0.0
        if apart > limits.twins:
            yield f"the twin that lends its gradient predicts differently on {percent(apart)} of samples"
        if known.empty:
            yield "the twin that lends its gradient was not held against the model"
    columns = {name: pd.to_numeric(rows[name], errors="coerce").to_numpy(float) for name in _MEASURED if name in rows}
    yield from diagnose(columns, lent=_lent(rows), limits=limits, survived=_left(evasion, rows["sample"]).to_numpy())


def _left(evasion: pd.DataFrame, samples: pd.Series) -> pd.Series:
    """Whether each sample is one that the attacks left robust under some threat, bool."""
    left = set()
    for _, same in evasion.groupby("threat"):
        worst = worst_case(same)["score"]
        left |= set(worst.index[worst > 0])
    return samples.isin(left)


def _lent(sentinel: pd.DataFrame | None) -> bool:
    """Whether the model has no gradient of its own and was looked at through its substitute."""
    return sentinel is not None and "gradient" in sentinel and bool(sentinel["gradient"].eq(SUBSTITUTE).any())


def _incomplete(rows: pd.DataFrame) -> Iterator[str]:
    """What was not tried on a model without gradients, of which each alone has been mistaken for robustness."""
    attacks = sorted(set(rows.loc[rows["status"].eq("ok"), "attack"]))
    refs = [Ref.parse(attack) for attack in attacks]
    kinds, union = access_of(rows), any(ref.name == UNION for ref in refs)
    searches = [int(ref.kwargs.get("queries", QUERIES)) for ref in refs if ref.name == "square"]
    whole = union or any(ref.name in HEDGED for ref in refs)
    told = {
        "transfer from its parent": union or any(is_transfer(attack) for attack in attacks),
        "gradients through its twin": union or any(kinds[attack] in GRADED for attack in attacks),
        f"{QUERIES} queries without gradients": whole or max(searches, default=0) >= QUERIES,
    }
    absent = [name for name, done in told.items() if not done]
    if absent:
        yield f"the model has no gradient of its own and was not attacked by {', '.join(absent)}"


def _outputs(rows: pd.DataFrame, correct: set[int], evasion: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    judged = rows[rows["sample"].isin(correct)]
    broken = _truth(judged["unbounded_broken"])
    if len(judged) and broken.min() < 1:
        yield f"an unbounded attack breaks only {percent(float(broken.mean()))} of correct samples"
    if _truth(rows["probabilities"]).mean() > limits.probabilities:
        yield "the model returns probabilities, not logits"
    if _random(rows) and not _drawn(evasion).any():
        yield "the model's output is random, and no attack went through its randomness"
    if _truth(rows["batch_dependent"]).gt(0).any():
        yield "the output depends on the other images of the batch"
    if _truth(rows.get("gradient_dependent", pd.Series(dtype=float))).gt(0).any():
        yield "the output changes when a gradient is asked for"


def _ascents(rows: pd.DataFrame, evasion: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    """What the sentinel's short ascents on some correct samples say of the search."""
    rows = rows[rows["broken_margin"].notna()] if "broken_margin" in rows else rows.iloc[:0]
    if rows.empty:
        return
    margin, ce = rows["broken_margin"].gt(0), rows["broken_ce"].gt(0)
    for name, count in (("margin", int((margin & ~ce).sum())), ("cross-entropy", int((ce & ~margin).sum()))):
        if many(count, len(rows), limits.disagreement, limits, limits.few):
            yield f"of two losses only {name} breaks {count} of {len(rows)} samples"
    late = rows["rising"].dropna().gt(limits.late)
    if len(late) and many(int(late.sum()), len(late), limits.unfinished, limits, limits.few):
        yield f"the margin still falls at the end of a short ascent on {int(late.sum())} of {len(late)} survivors"
    stuck = int((_truth(rows["stuck"]).gt(0) & _left(evasion, rows["sample"])).sum()) if "stuck" in rows else 0
    if many(stuck, len(rows), limits.resting, limits):
        yield f"four times eps hardly lowers the margin of {stuck} of {len(rows)} samples, which stayed robust"
    silent = int(_truth(rows["silent"]).gt(0).sum())
    if many(silent, len(rows), limits.advantage, limits):
        yield f"{silent} of {len(rows)} samples were broken on the way and not when judged"
    yield from _wider(rows, limits)
    yield from _missed(rows, evasion, limits)


def _wider(rows: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    """The same short ascent breaks no fewer samples at 2 and 4 times eps, and more where it broke some and left some.

    Distances to the boundary are spread: where 4 of 60 images fall within eps, about 12 lie between eps and 4 eps, and where
    all but 2 fall, those 2 are hardly beyond 4 eps. None there is no chance.
    """
    counts = [int(rows[name].gt(0).sum()) for name in ("broken_margin", "broken_2x", "broken_4x")]
    told = f"{counts[0]}, {counts[1]} and {counts[2]} of {len(rows)} samples at eps, 2 eps and 4 eps"
    if any(many(a - b, len(rows), limits.rise, limits) for a, b in pairwise(counts)):
        yield f"a larger eps breaks less: {told}"
    elif counts[2] <= counts[0] and max(2 * limits.floor, 0.05 * len(rows)) <= counts[0] <= len(rows) - limits.floor:
        yield f"a larger eps breaks no more: {told}"


def _missed(rows: pd.DataFrame, evasion: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    """The sentinel's short ascents break samples that the attacks at the same eps left robust."""
    losses = [name for name in ("broken_margin", "broken_ce", "broken_relative") if name in rows]
    broken = rows.loc[rows[losses].gt(0).any(axis=1), "sample"]
    for threat, same in evasion.groupby("threat"):
        if threat in set(rows["threat"]):
            worst = worst_case(same)["score"].reindex(broken)
            count = int(worst.gt(0).sum())
            if many(count, len(rows), limits.missed, limits, limits.few):
                yield f"short ascents break {count} of {len(rows)} samples that the attacks left robust"


def _notes(sentinel: pd.DataFrame | None, evasion: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    correct = set(evasion.loc[evasion["score_clean"] > 0, "sample"])
    if sentinel is not None and not sentinel.empty:
        judged = sentinel[sentinel["sample"].isin(correct) & (sentinel["status"] == "ok")]
        watched = judged["broken_margin"].notna() if "broken_margin" in judged else judged["sample"].isna()
        yield from _power("gradients and outputs were looked at", len(judged), limits)
        yield from _power("short ascents and the gradients on their way met", int(watched.sum()), limits)
        yield from _elsewhere(sentinel, evasion)
    yield from _unclimbed(evasion)
    if (memory := _uncopied(evasion)):
        yield memory
    yield from (ESCALATED + why for why in sorted(set(evasion["escalated"].dropna()) - {""}))
    for protocol, most in HEDGED.items():
        rows = evasion[evasion["attack"].str.startswith(protocol)]
        for _, same in rows.groupby("threat"):
            left = int((worst_case(same)["score"] > 0).sum())
            if left > 2 * most:
                yield from _excluded("a search without gradients met", most, "random survivors")


def _elsewhere(sentinel: pd.DataFrame, evasion: pd.DataFrame) -> Iterator[str]:
    """Threats of another norm than the one in whose geometry gradients were measured and short ascents made."""
    if "threat" not in sentinel:
        return
    met = sorted(set(sentinel["threat"]))
    norms = {_norm(text) for text in met}
    for threat in sorted(set(evasion["threat"])):
        if _norm(threat) not in norms:
            where = ", ".join(met)
            yield f"gradients and short ascents were looked at under {where} only; in the geometry of {threat} nothing was"


def _norm(threat: str) -> str:
    return str(threat).partition("(")[0]


def _power(what: str, count: int, limits: Thresholds) -> Iterator[str]:
    """What checks that say nothing exclude: a planted fault on so many samples would have been told."""
    if count:
        told = f"a fault on {percent(visible(count, limits))} of samples would have been told with a probability of 95 %"
        yield f"{what} on {count} correct samples: {told}"


def _excluded(what: str, count: int, whom: str) -> Iterator[str]:
    """What 0 findings on ``count`` samples exclude at 95 %: a share above 1 - 0.05^(1/count), about 3/count."""
    if count:
        yield f"{what} on {count} {whom}: finding nothing bounds a fault to {percent(1 - 0.05 ** (1 / count))} at 95 %"


def _rows(rows: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    failed = rows["status"] != "ok"
    if failed.any():
        yield f"{int(failed.sum())} of {len(rows)} attack rows failed ({', '.join(sorted(set(rows.loc[failed, 'attack'])))})"
    unstable = float(_truth(rows["unstable"])[_drawn(rows).eq(0) & ~_drawn(rows).gt(0).any()].mean())
    if unstable > limits.unstable:
        yield f"{percent(unstable)} of rows are judged differently in another batch"
    graded = rows[rows["attack"].map(access_of(rows)).isin(GRADED) & (rows["score_clean"] > 0)]
    passes = float(_truth(graded["backwards"]).sum())
    zero = float(_truth(graded["zero_gradients"]).sum()) / passes if passes else 0.0
    if zero > limits.zero_gradient:
        yield f"attacks met zero gradients in {percent(zero)} of their passes"
    rough = int(_truth(rows["unconfirmed"]).gt(0).groupby(rows["sample"]).any().sum())
    if many(rough, rows["sample"].nunique(), limits.unconfirmed, limits):
        yield f"a search in lower precision broke {rough} samples that the model itself did not confirm at once"
    if _truth(rows["nonfinite_gradients"]).gt(0).any():
        yield "attacks met non-finite gradients"
    if _truth(rows["nonfinite_outputs"]).gt(0).any():
        yield "attacks met non-finite outputs"


def _remembering(rows: pd.DataFrame) -> Iterator[str]:
    """A copy of the model that met the attack's images first, and no clean ones, decides otherwise."""
    known = rows[rows["fresh_copy_agrees"].notna()]
    apart = int((known["fresh_copy_agrees"] == 0).groupby(known["sample"]).any().sum())
    if apart:
        total = known["sample"].nunique()
        yield f"a new copy of the model, which has met no clean image, decides otherwise on {apart} of {total} samples"


def _uncopied(rows: pd.DataFrame) -> str:
    """Why no new copy of the model was asked about the images of some attack; empty where one was."""
    why = rows.loc[rows["fresh_copy_agrees"].isna(), "fresh_copy_note"].fillna("")
    told = "; ".join(sorted(set(why) - {""}))
    return f"not examined for a memory of earlier images: {told}" if told else ""


def _unclimbed(rows: pd.DataFrame) -> Iterator[str]:
    """What the copy was not asked, where it was asked something."""
    why = rows.loc[rows["fresh_copy_agrees"].notna(), "fresh_copy_note"].fillna("")
    for text in sorted(set(why) - {""}):
        yield f"for a memory of earlier images only attacked images were examined: {text}"


def _broken(rows: pd.DataFrame, correct: pd.Index) -> pd.Series:
    """Whether any attack of the rows broke each clean-correct sample."""
    broken = rows["score_adv"].eq(0).groupby(rows["sample"]).any()
    return broken.reindex(correct, fill_value=False).astype(bool)


def _rivals(rows: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    """Attacks and stages that see less than the gradient were run, and do not find more than it."""
    correct = pd.Index(sorted(set(rows.loc[rows["score_clean"] > 0, "sample"])))
    if not (rows["eps"] > 0).any() or correct.empty:
        return
    kinds = access_of(rows)
    graded = rows["attack"].map(kinds).isin(GRADED)
    if rows["attack"].map(kinds).eq("white").all():
        yield "no attack without gradients was run (at least noise)"
    if not graded.any():
        yield "no gradient attack was run"
        return
    blind = graded & (rows["score_clean"] > 0) & _blind(rows)
    gradient = _broken(rows[graded & ~blind], correct)
    for attack in sorted(set(rows.loc[~graded, "attack"])):
        rival = _broken(rows[rows["attack"] == attack], correct)
        weak = kinds[attack] in ("transfer", "noise")
        count = int((rival & ~gradient).sum()) if weak else int(rival.sum() - gradient.sum())
        if many(count, len(correct), limits.advantage, limits):
            how = "that gradient attacks did not" if weak else "more than the gradient attacks"
            yield f"{attack} breaks {count} of {len(correct)} correct samples {how}"
    count = int((_broken(rows[blind], correct) & ~gradient).sum())
    if many(count, len(correct), limits.remainder, limits):
        stages = ", ".join(sorted(set(rows.loc[blind, "stage"])))
        yield f"{stages} broke {count} of {len(correct)} correct samples that gradient stages did not"


def _blind(rows: pd.DataFrame) -> pd.Series:
    """Whether a protocol's stage without gradients broke the sample of each row."""
    return rows["stage_access"].isin(BLIND)


def _unended(rows: pd.DataFrame) -> Iterator[str]:
    """What a protocol says of a search that it did not bring to its end, or could not make."""
    told = set(rows["escalated"].dropna())
    whys = {why for text in told for why in str(text).split("; ")}
    yield from sorted(why for why in whys if why.startswith((UNENDED, UNBRIDGED, ASTRAY)))


def _rising(rows: pd.DataFrame, threats: set[str], limits: Thresholds) -> Iterator[str]:
    """A larger eps of the same norm must not leave more samples robust, over the samples that are known at both."""
    norms = rows["threat"].str.replace(r"\(.*", "", regex=True)
    for _, same in rows.groupby(norms):
        points = [(eps, threat, _known(part)) for (eps, threat), part in same.groupby(["eps", "threat"])]
        for i, (_, threat, larger) in enumerate(points):
            for _, other, smaller in points[:i] if threat in threats else ():
                common = larger.index.intersection(smaller.index)
                rise = float(larger[common].sum() - smaller[common].sum())
                if rise >= limits.floor and rise > limits.rise * len(common):
                    rise_in = f"{100 * rise / len(common):.1f} percentage points"
                    yield f"robust accuracy rises from {other} to {threat} by {rise_in}"


def _known(rows: pd.DataFrame) -> pd.Series:
    """The worst case of each sample that is not unknown: one on which an attack failed may not have survived."""
    worst = worst_case(rows)
    return worst.loc[~worst["unknown"], "score"]
