"""Runs read back from their folders, without wandb."""
