"""Where two tokenizations of one text meet: chunks that spell the same bytes on both sides.

`crosstill.align` is both this package and the public function: importing a subpackage binds its
name in `crosstill`, and would otherwise hide the function of the same name.
"""

import sys
from types import ModuleType
from typing import Any

from crosstill.align.chunks import AlignedFraction, Alignment
from crosstill.align.kernel import chunk_ids
from crosstill.align.rows import RowAlignment, align_rendered

__all__ = [
    "AlignedFraction",
    "Alignment",
    "RowAlignment",
    "align_rendered",
    "chunk_ids",
]


class _AlignPackage(ModuleType):
    def __call__(self, text: str, student_tokenizer: Any, teacher_tokenizer: Any) -> Alignment:
        """As `crosstill.align.chunks.align`."""
        from crosstill.align.chunks import align

        return align(text, student_tokenizer, teacher_tokenizer)


sys.modules[__name__].__class__ = _AlignPackage
