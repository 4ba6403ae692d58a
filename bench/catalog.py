"""All tables of names in one place: ours and, by entry points, third parties'. Imports nothing heavy."""

from __future__ import annotations

from robench import attacks, compress, corrupt, data, defenses, explainers, metrics, models, ood
from robench.registry import Table

ATTACKS = Table("attacks", attacks.TABLE, attacks.PREFIXES)
DATA = Table("data", data.TABLE, data.PREFIXES)
ARCHITECTURES = Table("architectures", models.TABLE)
RECIPES = Table("recipes", defenses.TABLE_RECIPES)
AUGMENTATIONS = Table("augmentations", defenses.TABLE_AUGMENTATIONS)
DEFENSES = Table("defenses", defenses.TABLE)
COMPRESSIONS = Table("compressions", compress.TABLE)
CORRUPTIONS = Table("corruptions", corrupt.TABLE)
EXPLAINERS = Table("explainers", explainers.TABLE)
METRICS = Table("metrics", metrics.TABLE)
DETECTORS = Table("detectors", ood.TABLE)
OOD_SOURCES = Table("ood_sources", ood.TABLE_SOURCES)
SCENARIOS = Table(
    "scenarios",
    {
        "clean": "robench.scenarios.clean:clean",
        "evasion": "robench.scenarios.evasion:evasion",
        "sentinel": "robench.scenarios.sentinel:sentinel",
        "corruption": "robench.scenarios.corruption:corruption",
        "flips": "robench.scenarios.flips:flips",
        "explanation": "robench.scenarios.explanation:explanation",
        "efficiency": "robench.scenarios.efficiency:efficiency",
        "spatial": "robench.scenarios.spatial:spatial",
        "shift": "robench.scenarios.shift:shift",
        "groups": "robench.scenarios.shift:groups",
        "evasion_train": "robench.scenarios.shift:evasion_train",
        "twin": "robench.scenarios.twin:twin",
        "disagreement": "robench.scenarios.disagreement:disagreement",
        "explanation_change": "robench.scenarios.explanation_change:explanation_change",
        "ood": "robench.scenarios.ood:ood",
        "calibration": "robench.scenarios.calibration:calibration",
    },
)
BUILDERS = Table(
    "builders",
    {
        "zoo": "robench.builders.models:zoo",
        "file": "robench.builders.models:file",
        "defended": "robench.builders.models:defended",
        "trained": "robench.builders.training:trained",
        "compressed": "robench.builders.compression:compressed",
        "tuned": "robench.builders.tuning:tuned",
        "images": "robench.builders.images:images",
        "sampled": "robench.builders.images:sampled",
        "corrupted": "robench.builders.images:corrupted",
        "published": "robench.builders.images:published",
        "sequences": "robench.builders.images:sequences",
        "severity": "robench.builders.images:severity",
        "predictions": "robench.builders.predictions:predictions",
        "part": "robench.builders.predictions:part",
        "groups": "robench.builders.groups:groups",
        "drawn": "robench.builders.drawn:drawn",
        "attacked": "robench.builders.attacked:attacked",
    },
)

TABLES = {
    table.kind: table
    for table in (
        ATTACKS,
        DATA,
        ARCHITECTURES,
        RECIPES,
        AUGMENTATIONS,
        DEFENSES,
        COMPRESSIONS,
        CORRUPTIONS,
        EXPLAINERS,
        METRICS,
        DETECTORS,
        OOD_SOURCES,
        SCENARIOS,
        BUILDERS,
    )
}
"""Every table by its kind; ``robench list KIND`` prints one."""
