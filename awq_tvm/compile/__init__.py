"""The compile driver: the order of the stages from a checkpoint to a bundle."""
