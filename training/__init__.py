"""Everything needed to train, measure and publish."""
