"""Tasks of the lm-evaluation-harness on a model of ours, whatever computes its logits."""
