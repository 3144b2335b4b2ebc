"""LeCun, Bottou, Bengio and Haffner 1998, sections IV to VIII: Graph Transformer Networks."""

from pl_losses.papers.gtn.lattices.arcs import ArcLattice
from pl_losses.papers.gtn.lattices.grammars import ctc_topology, lexicon
from pl_losses.papers.gtn.lattices.lattice import SegmentLattice
from pl_losses.papers.gtn.lattices.paths import Path

__all__ = ["ArcLattice", "Path", "SegmentLattice", "ctc_topology", "lexicon"]
