"""Losses and their parts as pure functions of tensors: `from crosstill import functional as F`.

Nothing here knows a tokenizer, a model, a configuration or a process group. Log-probabilities
are in nats; every loss is a `LossSum`: a total and a count, to be divided once.
"""

from crosstill.functional.cdm import cdm_loss
from crosstill.functional.chunk import chunk_loglikelihood, merge_chunks
from crosstill.functional.chunk_kl import (
    chunk_kl_loss,
)
from crosstill.functional.classical import (
    adaptive_kl,
    forward_kl,
    jsd,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from crosstill.functional.clipped import (
    dac_kl,
    swapped_kl,
)
from crosstill.functional.divergences import DIVERGENCES, binarised_divergence
from crosstill.functional.dskd import DSKD_DIVERGENCES, dskd_loss
from crosstill.functional.fused import (
    ChunkTerm,
    FusedLoss,
    HeadMatrix,
    LabelTerm,
    fused_head,
    head_logprobs,
)
from crosstill.functional.gold import ChunkTokens, GoldForm, gold_loss
from crosstill.functional.hidden import HIDDEN_DISTANCES, hidden_loss
from crosstill.functional.losses import LossSum, TeacherChunks, alm_loss, sft_loss, teacher_chunks
from crosstill.functional.matching import MatchedColumns, match_columns
from crosstill.functional.mined import mined_loss
from crosstill.functional.multilevelot import OtForm, multilevelot_loss
from crosstill.functional.numerics import log1mexp
from crosstill.functional.prefix_blocks import PrefixTables
from crosstill.functional.prefix_kl import prefix_kl_loss
from crosstill.functional.projection import (
    Projection,
    make_projection,
    relaxed_pairs,
)
from crosstill.functional.rows import ChunkRows, chunk_rows, label_rows
from crosstill.functional.scores import boundary_logmass, token_logprobs
from crosstill.functional.simct import (
    simct_loss,
)
from crosstill.functional.uld import uld_loss
from crosstill.functional.xtoken import xtoken_hybrid_loss, xtoken_loss

__all__ = [
    "PrefixTables",
    "prefix_kl_loss",
    "DIVERGENCES",
    "DSKD_DIVERGENCES",
    "HIDDEN_DISTANCES",
    "ChunkRows",
    "ChunkTerm",
    "FusedLoss",
    "HeadMatrix",
    "LabelTerm",
    "TeacherChunks",
    "fused_head",
    "head_logprobs",
    "teacher_chunks",
    "LossSum",
    "alm_loss",
    "binarised_divergence",
    "cdm_loss",
    "boundary_logmass",
    "chunk_loglikelihood",
    "chunk_rows",
    "dskd_loss",
    "hidden_loss",
    "label_rows",
    "log1mexp",
    "merge_chunks",
    "mined_loss",
    "sft_loss",
    "token_logprobs",
    "multilevelot_loss",
    "OtForm",
    "match_columns",
    "MatchedColumns",
    "gold_loss",
    "GoldForm",
    "ChunkTokens",
    "uld_loss",
    "adaptive_kl",
    "forward_kl",
    "jsd",
    "reverse_kl",
    "skewed_kl",
    "skewed_reverse_kl",
    "total_variation",
    "dac_kl",
    "swapped_kl",
    "chunk_kl_loss",
    "simct_loss",
    "xtoken_loss",
    "xtoken_hybrid_loss",
    "Projection",
    "make_projection",
    "relaxed_pairs",
]
