"""Synthetic per-sample frames with the documented columns; no torch, no models."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from robench.metrics.columns import EVASION
from robench.metrics.table import tidy

N = 60
EPS = {"linf(2/255)": 2 / 255, "linf(4/255)": 4 / 255, "linf(8/255)": 8 / 255}


def cell(model: str, scenario: str, condition: str = "", seed: int = 0) -> dict[str, object]:
    return {
        "model": model,
        "dataset": "digits",
        "scenario": scenario,
        "condition": condition,
        "seed": seed,
        "cell": f"{abs(hash_of(model + scenario + condition + str(seed))):012x}",
    }


def hash_of(text: str) -> int:
    return sum((i + 1) * ord(c) for i, c in enumerate(text))


def skill(model: str) -> np.ndarray:
    """How much each sample withstands, in [0, 1]; larger is more robust."""
    ranks = (np.arange(N) * 7 % N + 0.5) / N
    return np.clip(ranks * {"plain": 0.6, "trained": 1.6, "masked": 1.2}[model], 0, 2)


def clean(model: str, condition: str = "", *, fraction: float = 1.0, seed: int = 0) -> pd.DataFrame:
    n = N * 2
    ids = np.arange(n)
    good = (ids * 7 % N + 0.5) / N > 0.05 + 0.2 * (1 - fraction)
    return pd.DataFrame(
        {
            **cell(model, "clean", condition, seed),
            "sample": ids,
            "label": ids % 4,
            "split": np.where(ids < N, "test", "train"),
            "pred": np.where(good | (ids >= N), ids % 4, (ids + 1) % 4),
            "score": (good | (ids >= N)).astype(float),
            "confidence": 0.8 + 0.001 * (ids % 100),
            "p_label": 0.8,
            "brier": np.where(good, 0.06, 1.2),
            "nll": 0.2,
            "margin": np.where(good, 1.0, -1.0),
            "fraction": fraction,
            "train_n": N,
            "train_accuracy": 1.0,
        }
    )


def scarcity(model: str, fraction: float, seed: int) -> pd.DataFrame:
    """Clean rows of a training on a share of 1000 images, a fifth of them wrongly labelled."""
    frame = clean(model, f"scarcity(fraction={fraction})", fraction=fraction, seed=seed)
    count = round(1000 * fraction)
    return frame.assign(train_n=count, noisy_n=count // 5, memorised_n=count // 10)


def evasion(model: str, *, attacks: tuple[str, ...] = ("fgsm", "pgd(steps=40)", "noise")) -> pd.DataFrame:
    parts = []
    correct = clean(model)["score"].to_numpy()[:N]
    strength = {"fgsm": 0.7, "pgd(steps=40)": 1.0, "noise": 0.1}
    for threat, eps in EPS.items():
        for attack in attacks:
            broken = skill(model) < eps * 255 / 10 * strength[attack]
            parts.append(
                pd.DataFrame(
                    {
                        **cell(model, "evasion"),
                        **dict.fromkeys(EVASION, 0.0),
                        **dict.fromkeys(("stage_access", "escalated", "fresh_copy_note"), ""),
                        "fresh_copy_agrees": np.nan,
                        "norm": "linf",
                        "sample": np.arange(N),
                        "label": np.arange(N) % 4,
                        "threat": threat,
                        "eps": eps,
                        "attack": attack,
                        "access": "noise" if attack == "noise" else "white",
                        "stage": "",
                        "status": "ok",
                        "error": "",
                        "score_clean": correct,
                        "score_adv": np.where(broken, 0.0, correct),
                        "broken": broken,
                        "broken_8bit": broken,
                        "unstable": False,
                        "forwards": 40,
                        "backwards": 0 if attack == "noise" else 40,
                        "zero_gradients": 0,
                        "nonfinite_gradients": 0,
                        "nonfinite_outputs": 0,
                        "seconds": 0.01,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def sentinel(model: str) -> pd.DataFrame:
    ids = np.arange(N)
    return pd.DataFrame(
        {
            **cell(model, "sentinel"),
            "sample": ids,
            "label": ids % 4,
            "status": "ok",
            "error": "",
            "zero_gradient": (ids % 4 == 0) if model == "masked" else np.zeros(N, bool),
            "nonfinite_gradient": False,
            "gradient_error": 0.01,
            "slope": ids - 30.0,
            "slope_claimed": 0.99 * ids - 30.0,
            "hidden": 0.001,
            "evenness": 0.4,
            "unbounded_broken": (ids % 3 > 0) if model == "masked" else np.ones(N, bool),
            "probabilities": False,
            "random": False,
            "batch_dependent": False,
            "gradient_dependent": False,
            "threat": "linf(8/255)",
            "broken_margin": (skill(model) < 0.8).astype(float),
            "broken_ce": (skill(model) < 0.75).astype(float),
            "broken_2x": (skill(model) < 1.2).astype(float),
            "broken_4x": 1.0,
            "rising": np.where(skill(model) < 0.8, np.nan, 0.01),
            "silent": 0.0,
        }
    )


def protocol(model: str, name: str = "robench-standard") -> pd.DataFrame:
    """Evasion rows of a protocol with stages, at one eps: each sample was broken by the sieve or by nothing."""
    rows = evasion(model, attacks=("pgd(steps=40)",))
    rows = rows[rows["threat"] == "linf(8/255)"].assign(attack=name, access="all")
    broken = rows["score_adv"].eq(0) & rows["score_clean"].gt(0)
    stage = np.where(rows["score_clean"].eq(0), "clean", np.where(broken, "sieve", ""))
    access = np.where(stage == "clean", "score", np.where(stage == "sieve", "white", ""))
    return rows.assign(stage=stage, stage_access=access, escalated="")


def corruption(
    model: str, names: tuple[str, ...] = ("gaussian_noise", "contrast", "jpeg"), reference: str = ""
) -> pd.DataFrame:
    ids = np.arange(N)
    parts = []
    for index, name in enumerate(names):
        for severity in range(1, 6):
            good = skill(model) > 0.04 * severity + 0.05 * index
            parts.append(
                pd.DataFrame(
                    {
                        **cell(model, "corruption"),
                        "sample": ids,
                        "label": ids % 4,
                        "corruption": name,
                        "severity": severity,
                        "table": "imagenet-v1",
                        "family": "noise" if "noise" in name else "digital",
                        "source": "robench-C (regenerated, imagenet-v1)",
                        "reference": reference,
                        "classes": 1000,
                        "score": good.astype(float),
                        "score_clean": 1.0,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def benchmark(model: str) -> pd.DataFrame:
    """All 15 corruptions, and the scores of a reference model: every fourth image wrong, of the corrupted every second."""
    from robench.metrics.corrupted import ALEXNET

    frame = corruption(model, tuple(ALEXNET))
    return frame.assign(reference_score=frame["sample"] % 2.0, reference_score_clean=(frame["sample"] % 4 > 0) * 1.0)


def flips(model: str) -> pd.DataFrame:
    ids = np.arange(N)
    base = {**cell(model, "flips"), "sample": ids, "label": ids % 4, "frames": 31, "source": "robench-P (regenerated)"}
    parts = [
        pd.DataFrame({**base, "perturbation": name, "compared": compared, "flips": (ids % 3) / 30})
        for name, compared in (("gaussian_noise", "first"), ("tilt", "previous"))
    ]
    return pd.concat(parts, ignore_index=True)


def explanation(model: str) -> pd.DataFrame:
    ids = np.arange(N)
    base = {**cell(model, "explanation"), "sample": ids, "label": ids % 4, "infidelity": 0.1, "max_sensitivity": 0.3}
    parts = [
        pd.DataFrame({**base, "explainer": name, "gap": gap + 0.001 * ids, "gap_random": 0.05, "degenerate": ids == 0})
        for name, gap in (("saliency", 0.4), ("smoothgrad", 0.5))
    ]
    return pd.concat(parts, ignore_index=True)


def efficiency(model: str) -> pd.DataFrame:
    row = {
        "parameters": 1000,
        "nonzero": 900,
        "macs": 5e6,
        "stored_bytes": 4000,
        "latency_p50_ms": 1.5,
        "latency_p95_ms": 2.5,
        "latency_large_p50_ms": 20.0,
        "latency_large_p95_ms": 30.0,
        "large_batch": 32,
        "throughput": 1600.0,
        "throughput_batch": 32,
        "nominal_bytes": 3600,
        "peak_tensor_bytes": 9000,
    }
    return pd.DataFrame([{**cell(model, "efficiency"), **row, "peak_memory_bytes": 1e7, "threads": 1}])


def ood(model: str) -> pd.DataFrame:
    """Two detectors on two sources; ``knn`` does not apply to ``masked``."""
    ids = np.arange(N)
    parts = []
    for detector in ("energy", "knn"):
        shared = {**cell(model, "ood"), "detector": detector, "error": "", "status": "ok"}
        if detector == "knn" and model == "masked":
            told = {**shared, "sample": [-1], "is_id": False, "score": np.nan, "status": "skipped", "error": "no features"}
            parts += [pd.DataFrame({**told, "source": source}) for source in ("noise", "glyphs")]
            continue
        parts.append(pd.DataFrame({**shared, "sample": ids, "source": "", "is_id": True, "score": skill(model) + 0.3}))
        for source, shift in (("noise", -0.5), ("glyphs", 0.2)):
            told = {**shared, "sample": ids, "source": source, "is_id": False}
            parts.append(pd.DataFrame({**told, "score": skill(model)[::-1] + shift}))
    return pd.concat(parts, ignore_index=True)


def calibration(model: str) -> pd.DataFrame:
    ids = np.arange(N)
    parts = []
    for source, sure in (("clean", 2.0), ("pgd linf(0.1)", -0.5)):
        height = sure + 3 * skill(model)
        logits = [[h if k == i % 4 else 0.1 * k for k in range(4)] for i, h in zip(ids, height, strict=True)]
        shared = {"split": "validation", "fit_n": 40, "temperature": 1.5, "error": "", "unknown": ""}
        rows = {"sample": ids, "label": ids % 4, "source": source, "logits": logits}
        parts.append(pd.DataFrame({**cell(model, "calibration"), **rows, **shared}))
    return pd.concat(parts, ignore_index=True)


def shifts() -> dict[str, pd.DataFrame]:
    """Frames of ``plain`` on a shifted set with a reference line, on a grid of rotations, and in two groups."""
    ids = np.arange(N)
    base = {"sample": ids, "label": ids % 4, "score": (ids % 5 > 0).astype(float)}
    one = pd.DataFrame(
        {**cell("plain", "shift"), **base, "shift": "sketch", "split": "shifted", "baseline": "", "masked": 0}
    )
    both = pd.concat([one, one.assign(split="clean", score=(ids % 10 > 0).astype(float))], ignore_index=True)
    worst = (ids % 3 > 0).astype(float)
    turned = {"grid": "grid", "score_worst": worst, "score_mean": (1 + worst) / 2, "score_clean": 1.0}
    return {
        "shift": both.assign(slope=0.9, intercept=-0.5, references=20),
        "spatial": pd.DataFrame({**cell("plain", "spatial"), "sample": ids, **turned}),
        "groups": pd.DataFrame({**cell("plain", "groups"), **base, "group": np.where(ids < 52, "day", "night")}),
    }


def disagreement(model: str, condition: str = "prune(amount=0.5)") -> pd.DataFrame:
    ids = np.arange(N)
    pred, parent = (ids + (ids % 9 == 0)) % 4, (ids + (ids % 10 == 0)) % 4
    return pd.DataFrame(
        {
            **cell(model, "disagreement", condition),
            "sample": ids,
            "label": ids % 4,
            "parent": "",
            "pred": pred,
            "pred_parent": parent,
            "score": (pred == ids % 4).astype(float),
            "score_parent": (parent == ids % 4).astype(float),
            "confidence": 0.7 + 0.002 * ids,
            "confidence_parent": 0.8 + 0.002 * ids,
            "kl": 0.001 * ids,
        }
    )


def explanation_change(model: str, condition: str = "prune(amount=0.5)") -> pd.DataFrame:
    rows = {"sample": np.arange(N), "label": np.arange(N) % 4, "parent": "", "explainer": "saliency"}
    measured = {"rank_correlation": np.cos(np.arange(N)), "top_intersection": 0.5, "degenerate": False}
    return pd.DataFrame({**cell(model, "explanation_change", condition), **rows, **measured})


MODELS = ("plain", "trained", "masked")


def twin(model: str) -> pd.DataFrame:
    apart = np.random.default_rng(hash_of(model + "twin")).uniform(0, 0.1, 50)
    told = {"sample": np.arange(50), "label": np.arange(50) % 10, "images": "clean", "severity": 0}
    differences = {"difference_mean": apart, "difference_max": 2 * apart, "relative": apart / 9}
    return pd.DataFrame({**cell(model, "twin"), **told, "agrees": (apart < 0.095).astype(int), **differences})


def frames() -> dict[str, pd.DataFrame]:
    """Frames of three models; ``masked`` is suspicious; ``plain`` has scarcity conditions."""
    scarce = [scarcity("plain", f, s) for f in (0.05, 0.1, 0.5, 1.0) for s in (0, 1)]
    return {
        "clean": pd.concat([*(clean(m) for m in MODELS), *scarce], ignore_index=True),
        "evasion": pd.concat([evasion(m) for m in MODELS], ignore_index=True),
        "sentinel": pd.concat([sentinel(m) for m in MODELS], ignore_index=True),
        "corruption": pd.concat([corruption(m) for m in MODELS], ignore_index=True),
        "flips": pd.concat([flips(m) for m in MODELS], ignore_index=True),
        "explanation": pd.concat([explanation(m) for m in MODELS], ignore_index=True),
        "efficiency": pd.concat([efficiency(m) for m in MODELS], ignore_index=True),
        "twin": twin("plain"),
        "disagreement": pd.concat([disagreement(m) for m in MODELS], ignore_index=True),
        "explanation_change": pd.concat([explanation_change(m) for m in MODELS], ignore_index=True),
    }


@cache
def _table(limited: bool) -> pd.DataFrame:
    return tidy(frames(), limited=limited)


def table(*, limited: bool = False) -> pd.DataFrame:
    """The tidy table of ``frames()``, computed once per process; the caller may change it."""
    return _table(limited).copy()


def confident() -> dict[str, pd.DataFrame]:
    """``frames`` and those of detection and calibration."""
    return {
        **frames(),
        "ood": pd.concat([ood(m) for m in MODELS], ignore_index=True),
        "calibration": pd.concat([calibration(m) for m in MODELS], ignore_index=True),
    }
