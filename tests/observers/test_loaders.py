"""What a batch's fingerprint goes by."""

from collections import UserDict

import torch

from pl_losses.observers.loaders import fingerprint


def test_samples_tell_within_a_mapping_of_any_class():
    """The text of a long tensor leaves its middle out."""
    tokens = torch.zeros(2000)
    changed = tokens.clone()
    changed[1000] = 1
    one, same, other = (UserDict(tokens=rows) for rows in (tokens, tokens.clone(), changed))
    assert fingerprint(one) == fingerprint(same) == fingerprint(dict(one))
    assert fingerprint(one) != fingerprint(other)
