"""Builders of artifacts: from a lineage to the model, images or predictions it names."""
