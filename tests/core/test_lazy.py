"""Faces: every name that one shows is there, and no other."""

import importlib
import sys

import pytest

FACES = ["", ".callbacks", ".dashboards", ".data", ".losses"] + [
    f".papers.{wing}" for wing in ("adam", "dropout", "gan", "gtn", "prelu", "sdae", "style")
]


@pytest.mark.parametrize("name", FACES)
def test_faces(name):
    face = importlib.import_module(f"pl_losses{name}")
    assert face.__all__ == dir(face) == sorted(set(face.__all__))
    assert all(hasattr(face, one) for one in face.__all__)
    with pytest.raises(AttributeError, match=f"module '{face.__name__}' has no attribute 'missing'"):
        face.missing  # noqa: B018


def test_the_source_may_lie_anywhere(tmp_path, monkeypatch):
    """As in an archive, of which there is no file to open."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.writestr(
            "zipped_face.py",
            "from typing import TYPE_CHECKING\nfrom pl_losses.core.lazy import lazy\n"
            "if TYPE_CHECKING:\n    from fractions import Fraction as Fraction\n"
            "__getattr__, __dir__, __all__ = lazy(__name__)\n",
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "zipped.zip"), *sys.path])
    assert importlib.import_module("zipped_face").Fraction(1, 2) == 0.5
