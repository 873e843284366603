"""Tasks, one LightningDataModule each; `base` is what they share."""
