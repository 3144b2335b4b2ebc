"""What a batch's fingerprint goes by."""

from collections import UserDict

import torch

from pl_losses.core.loaders import fingerprint


def test_samples_tell_within_a_mapping_of_any_class():
    """The text of a long tensor leaves its middle out."""
    tokens = torch.zeros(2000)
    changed = tokens.clone()
    changed[1000] = 1
    one, same, other = (UserDict(tokens=rows) for rows in (tokens, tokens.clone(), changed))
    assert fingerprint(one) == fingerprint(same) == fingerprint(dict(one))
    assert fingerprint(one) != fingerprint(other)


class Item:
    """Without a ``repr`` or an order of its own."""

    def __init__(self, value):
        self.value = value


def test_samples_tell_beside_what_is_common_to_a_batch():
    """The first tensor need not have a row for each sample."""
    grid, one, other = torch.linspace(0, 1, 5), torch.arange(6.0).view(3, 2), torch.ones(3, 2)
    assert fingerprint((grid, one)) != fingerprint((grid, other))
    assert fingerprint((grid, one)) == fingerprint((grid, one.flip(0)))
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(2.0))


def test_objects_tell_by_their_content():
    assert fingerprint([Item(1), Item(2)]) == fingerprint([Item(2), Item(1)])
    assert fingerprint([Item(1)]) != fingerprint([Item(2)])
    # What cannot be told counts.
    assert fingerprint([lambda: 1]) != fingerprint([lambda: 1])
