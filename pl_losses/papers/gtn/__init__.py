"""LeCun, Bottou, Bengio and Haffner 1998, sections IV to VIII: Graph Transformer Networks."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.gtn.lattices.arcs import ArcLattice as ArcLattice
    from pl_losses.papers.gtn.lattices.grammars import ctc_topology as ctc_topology, lexicon as lexicon
    from pl_losses.papers.gtn.lattices.lattice import SegmentLattice as SegmentLattice
    from pl_losses.papers.gtn.lattices.paths import Path as Path

__getattr__, __dir__, __all__ = lazy(__name__)
