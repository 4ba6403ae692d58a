"""Metrics: pure functions from the rows of one model, data set and condition to an ``Estimate``. No torch."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "accuracy": "robench.metrics.clean:accuracy",
    "train_test_gap": "robench.metrics.clean:train_test_gap",
    "worst_class_accuracy": "robench.metrics.clean:worst_class_accuracy",
    "ece": "robench.metrics.clean:ece",
    "brier": "robench.metrics.clean:brier",
    "data_efficiency_auc": "robench.metrics.scarcity:data_efficiency_auc",
    "robust_accuracy": "robench.metrics.robust:robust_accuracy",
    "robust_accuracy_without_unknown": "robench.metrics.robust:robust_accuracy_without_unknown",
    "robust_accuracy_8bit": "robench.metrics.robust:robust_accuracy_8bit",
    "robust_accuracy_mean_draw": "robench.metrics.robust:robust_accuracy_mean_draw",
    "robust_accuracy_worst_draw": "robench.metrics.robust:robust_accuracy_worst_draw",
    "n_unknown": "robench.metrics.robust:n_unknown",
    "security_curve_area": "robench.metrics.robust:security_curve_area",
    "transfer_success": "robench.metrics.transfer:transfer_success",
    "corrupted_accuracy": "robench.metrics.corrupted:corrupted_accuracy",
    "insertion_deletion_gap": "robench.metrics.explained:insertion_deletion_gap",
    "infidelity": "robench.metrics.explained:infidelity",
    "max_sensitivity": "robench.metrics.explained:max_sensitivity",
    "twin_agreement": "robench.metrics.twins:twin_agreement",
    "twin_logit_difference_mean": "robench.metrics.twins:twin_logit_difference_mean",
    "twin_logit_difference_max": "robench.metrics.twins:twin_logit_difference_max",
    "twin_logit_difference_relative": "robench.metrics.twins:twin_logit_difference_relative",
    "parameters": "robench.metrics.cost:parameters",
    "macs": "robench.metrics.cost:macs",
    "stored_bytes": "robench.metrics.cost:stored_bytes",
    "latency_p50_ms": "robench.metrics.cost:latency_p50_ms",
    "latency_p95_ms": "robench.metrics.cost:latency_p95_ms",
    "peak_memory_bytes": "robench.metrics.cost:peak_memory_bytes",
}
