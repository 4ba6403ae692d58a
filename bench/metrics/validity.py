"""Is a robustness number sound? A pure function of the evasion and sentinel rows.

Source: Carlini et al., 2019 (On Evaluating Adversarial Robustness, section 5); Pintor et al., NeurIPS 2022 (indicators of
attack failures); Croce & Hein, ICML 2020 (black-box beating white-box).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robench.metrics.robust import worst_case

SOUND, SUSPICIOUS = "sound", "suspicious"


@dataclass(frozen=True)
class Thresholds:
    """From where on a sign of trouble makes a number suspicious."""

    zero_gradient: float = 0.05
    """Largest share of samples (sentinel) or of gradient passes (attacks) without any gradient."""
    unstable: float = 0.005
    """Largest share of rows on which two differently composed batches disagree."""
    advantage: float = 0.01
    """Largest share of samples by which an attack that sees less may beat the gradient attacks."""
    rise: float = 0.01
    """Largest rise of robust accuracy from a smaller to a larger eps."""
    misleading: float = 0.1
    """Largest share of samples whose gradient may disagree with finite differences."""
    agreement: float = 0.85
    """Smallest cosine, over samples, between slopes along random directions as measured and as the gradient has them."""
    floor: int = 2
    """Samples that an advantage or a rise must comprise; one sample of a small set is no evidence."""


DEFAULTS = Thresholds()


@dataclass(frozen=True)
class Verdict:
    """``sound``, or ``suspicious`` with every reason found; a suspicious number is never ranked."""

    status: str
    reasons: tuple[str, ...] = ()

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
        ``sound`` only when no reason was found.
    """
    reasons = [*_sentinel(sentinel_rows, evasion_rows, thresholds)]
    for _, rows in evasion_rows.groupby("threat", sort=True):
        reasons += [*_rows(rows, thresholds), *_rivals(rows, thresholds)]
    everything = evasion_rows if siblings is None else pd.concat([siblings, evasion_rows], ignore_index=True)
    reasons += _rising(everything, set(evasion_rows["threat"]), thresholds)
    unique = tuple(dict.fromkeys(reasons))
    return Verdict(SUSPICIOUS if unique else SOUND, unique)


def access_of(rows: pd.DataFrame) -> dict[str, str]:
    """Attack → what it saw of the model, as declared; who declared gradients and never asked for one saw scores only."""
    graded = _truth(rows["backwards"]).groupby(rows["attack"]).sum() > 0
    declared = rows.groupby("attack")["access"].first()
    return {str(a): "score" if d == "white" and not graded[a] else str(d) for a, d in declared.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


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
        yield from _gradients(rows, limits)
        yield from _outputs(rows, correct, limits)


def _gradients(rows: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    zero = float(_truth(rows["zero_gradient"]).mean())
    if zero > limits.zero_gradient:
        yield f"zero gradients on {_percent(zero)} of samples"
    if _truth(rows["nonfinite_gradient"]).gt(0).any():
        yield "non-finite gradients"
    wrong = float(_truth(rows["gradient_error"]).gt(0.5).mean())
    if wrong > limits.misleading:
        yield f"gradients disagree with finite differences on {_percent(wrong)} of samples"
    measured, claimed = _truth(rows["slope"]), _truth(rows["slope_claimed"])
    norms = float(np.sqrt((measured**2).sum() * (claimed**2).sum()))
    cosine = float((measured * claimed).sum()) / norms if norms else float(not (measured.any() or claimed.any()))
    if cosine < limits.agreement:
        yield f"slopes along random directions agree with the gradient by a cosine of {cosine:.2f} only"


def _outputs(rows: pd.DataFrame, correct: set[int], limits: Thresholds) -> Iterator[str]:
    judged = rows[rows["sample"].isin(correct)]
    broken = _truth(judged["unbounded_broken"])
    if len(judged) and broken.min() < 1:
        yield f"an unbounded attack breaks only {_percent(float(broken.mean()))} of correct samples"
    if _truth(rows["probabilities"]).mean() > limits.unstable:
        yield "the model returns probabilities, not logits"
    if _truth(rows["random"]).gt(0).any():
        yield "the model's output is random"
    if _truth(rows["batch_dependent"]).gt(0).any():
        yield "the output depends on the other images of the batch"


def _rows(rows: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    failed = rows["status"] != "ok"
    if failed.any():
        yield f"{int(failed.sum())} of {len(rows)} attack rows failed ({', '.join(sorted(set(rows.loc[failed, 'attack'])))})"
    unstable = float(_truth(rows["unstable"]).mean())
    if unstable > limits.unstable:
        yield f"{_percent(unstable)} of rows are judged differently in another batch"
    graded = rows[rows["attack"].map(access_of(rows)).eq("white") & (rows["score_clean"] > 0)]
    passes = float(_truth(graded["backwards"]).sum())
    zero = float(_truth(graded["zero_gradients"]).sum()) / passes if passes else 0.0
    if zero > limits.zero_gradient:
        yield f"attacks met zero gradients in {_percent(zero)} of their passes"
    if _truth(rows["nonfinite_gradients"]).gt(0).any():
        yield "attacks met non-finite gradients"
    if _truth(rows["nonfinite_outputs"]).gt(0).any():
        yield "attacks met non-finite outputs"


def _broken(rows: pd.DataFrame, correct: pd.Index) -> pd.Series:
    """Whether any attack of the rows broke each clean-correct sample."""
    broken = rows["score_adv"].eq(0).groupby(rows["sample"]).any()
    return broken.reindex(correct, fill_value=False).astype(bool)


def _rivals(rows: pd.DataFrame, limits: Thresholds) -> Iterator[str]:
    """Attacks that see less than the gradient were run, and do not find more than it."""
    correct = pd.Index(sorted(set(rows.loc[rows["score_clean"] > 0, "sample"])))
    if not (rows["eps"] > 0).any() or correct.empty:
        return
    kinds = access_of(rows)
    white = rows["attack"].map(kinds).eq("white")
    if white.all():
        yield "no attack without gradients was run (at least noise)"
    if not white.any():
        yield "no gradient attack was run"
        return
    gradient = _broken(rows[white], correct)
    for attack in sorted(set(rows.loc[~white, "attack"])):
        rival = _broken(rows[rows["attack"] == attack], correct)
        new = int((rival & ~gradient).sum())
        more = int(rival.sum() - gradient.sum())
        weak = kinds[attack] in ("transfer", "noise")
        count = new if weak else more
        if count >= limits.floor and count > limits.advantage * len(correct):
            how = "that gradient attacks did not" if weak else "more than the gradient attacks"
            yield f"{attack} breaks {count} of {len(correct)} correct samples {how}"


def _rising(rows: pd.DataFrame, threats: set[str], limits: Thresholds) -> Iterator[str]:
    """A larger eps of the same norm must not leave more samples robust, over the samples that both attacked."""
    norms = rows["threat"].str.replace(r"\(.*", "", regex=True)
    for _, same in rows.groupby(norms):
        points = [(eps, threat, worst_case(part)["score"]) for (eps, threat), part in same.groupby(["eps", "threat"])]
        for i, (_, threat, larger) in enumerate(points):
            for _, other, smaller in points[:i] if threat in threats else ():
                common = larger.index.intersection(smaller.index)
                rise = float(larger[common].sum() - smaller[common].sum())
                if rise >= limits.floor and rise > limits.rise * len(common):
                    yield f"robust accuracy rises from {other} to {threat} by {_percent(rise / len(common))}"
