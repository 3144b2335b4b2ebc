"""LeCun et al. 1998, section VIII: graphs that lattices are often composed with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pl_losses.core.validation import check_real, typed
from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.graph import EPSILON


@typed
def lexicon(words: Sequence[Sequence[int]], penalties: Tensor | None = None) -> ArcLattice:
    """Return the trie of some words: a grammar of one graph that spells these and nothing else.

    Args:
        words: Label sequences, all different.
        penalties: Penalty of each word, such as its negative log probability, shape [words]; ``None`` for 0.

    Raises:
        ValueError: If there are no words, a word twice, a label below 0, or not one penalty each.

    Example:
        >>> penalty = torch.tensor([0.1, 0.5, 0.2, 0.9])
        >>> lattice = ArcLattice([0, 0, 1, 1], [1, 1, 2, 2], [3, 4, 3, 4], penalty=penalty)
        >>> lattice.best_path()[0].labels
        (3, 3)
        >>> lattice.constrain(lexicon([(3, 4), (4, 3), (4,)])).best_path()[0].labels
        (4, 3)
    """
    if len({tuple(word) for word in words}) != len(words) or not len(words):
        raise ValueError(f"Expected `words` to be at least one and all different but got {len(words)}")
    if penalties is not None and penalties.shape != (len(words),):
        raise ValueError(f"Expected `penalties` of shape [{len(words)}] but got {list(penalties.shape)}")
    if penalties is not None:
        check_real("penalties", penalties)
    if low := [label for word in words for label in word if int(label) < 0]:
        raise ValueError(f"Expected `words` of labels of at least 0 but got {low[0]}")
    nodes: dict[tuple[int, ...], int] = {(): 0}
    arcs: list[tuple[int, int, int]] = []
    for word in words:
        for end in range(1, len(word) + 1):
            prefix = tuple(int(label) for label in word[:end])
            if prefix not in nodes:
                nodes[prefix] = len(nodes)
                arcs.append((nodes[prefix[:-1]], nodes[prefix], prefix[-1]))
    # Every word ends in an arc without a label, which has its penalty, to one final node.
    arcs += [(nodes[tuple(int(label) for label in word)], len(nodes), EPSILON) for word in words]
    of_words = torch.zeros(len(words)) if penalties is None else penalties
    penalty = torch.cat([of_words.new_zeros(len(arcs) - len(words)), of_words])
    source, destination, label = torch.tensor(arcs).unbind(1)
    return ArcLattice(source, destination, label, penalty=penalty, final=[len(nodes)])


@typed
def ctc_topology(num_classes: int, blank: int = 0) -> ArcLattice:
    """Return the transducer of connectionist temporal classification, from frames to label strings.

    It reads one of ``num_classes`` symbols per frame, drops those equal to the one before, then blanks. An
    SDNN's output that is composed with it and constrained to a target has the forward penalty that
    :func:`torch.nn.functional.ctc_loss` computes, which is faster for this case.

    Example:
        >>> from pl_losses.papers.gtn import SegmentLattice
        >>> log_probs = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0)).log_softmax(2)
        >>> frames = SegmentLattice(-log_probs.transpose(0, 1)[:, :, None])
        >>> targets = torch.tensor([[1, 1], [3, 2]])
        >>> ours = frames.constrain(ctc_topology(4)).constrain(targets).forward_penalty()
        >>> sizes = torch.tensor([6, 6]), torch.tensor([2, 2])
        >>> torch.allclose(ours, torch.nn.functional.ctc_loss(log_probs, targets, *sizes, reduction="none"))
        True
    """
    if not 0 <= blank < num_classes:
        raise ValueError(f"Expected `blank` in [0, {num_classes}) but got {blank}")
    # In node c the last symbol was c; a path starts as if after a blank.
    last, symbol = torch.cartesian_prod(torch.arange(num_classes), torch.arange(num_classes)).unbind(1)
    silent = (symbol == last) | (symbol == blank)
    return ArcLattice(
        last,
        symbol,
        symbol,
        penalty=torch.zeros(len(symbol)),
        start=[blank],
        final=[list(range(num_classes))],
        output=symbol.where(~silent, EPSILON),
    )
