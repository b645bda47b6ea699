"""Causal questions by the thousand: patching, ablation, and the metrics that answer them."""
