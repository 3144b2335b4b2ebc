"""The panels of what all papers share."""

from pl_losses.core.panels import PROGRESS, Section, bars, lines

HEADLINE = "error"
LOSS = lines("Loss", "<stage>/loss", smoothing=0.6)
ERROR = lines("Error, share of all", "<stage>/error")
TEST_ERROR = bars("Test error with its 95 % interval", "test/error_low", "test/error", "test/error_high")

CLASSIFIER = (Section("Training", (LOSS, ERROR)), Section("Test", (TEST_ERROR,)))
HOW_FAR = (Section(PROGRESS, (lines("Epochs", "epoch"),)),)
LEARNING_RATE = (Section("Training", (lines("Learning rate", "lr-<optimizer>"),)),)
