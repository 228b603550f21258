"""All that is needed to learn: data, trainer, checkpoints."""
