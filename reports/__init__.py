"""Reports: the tidy table as leaderboards, text, pictures, a page and a verdict. No torch."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "leaderboard": "robench.reports.leaderboard:leaderboard",
    "text": "robench.reports.text:render",
    "security_curve": "robench.reports.curves:security_curve",
    "corruption_curve": "robench.reports.curves:corruption_curve",
    "corruption_families": "robench.reports.corruptions:family_curves",
    "scarcity_curve": "robench.reports.scarcity:scarcity_curve",
    "data_quality_curve": "robench.reports.scarcity:data_quality_curve",
    "augmentation_gains": "robench.reports.scarcity:augmentation_gains",
    "transfer_gains": "robench.reports.scarcity:transfer_gains",
    "transfers": "robench.reports.transfers:transfer_matrix",
    "page": "robench.reports.page:page",
    "audit": "robench.reports.audit:audit",
    "files": "robench.reports.write:write_reports",
}
