"""Learning rates of a student's parts: new embeddings have further to go than the rest."""

from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from crosstill.heads import under_adapters


def embedding_weights(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices at a model's two ends; one where they are tied."""
    base = under_adapters(model)
    if not isinstance(base, PreTrainedModel):
        return []
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    found = {
        id(parameter): parameter
        for end in ends
        if end is not None
        for parameter in end.parameters()
    }
    return [parameter for parameter in found.values() if parameter.requires_grad]


def set_embedding_rate(optimizer: Optimizer, model: nn.Module, rate: float | None) -> None:
    """Gives the embeddings groups of their own in an optimizer, with this peak rate; once.

    Everything else of their groups (weight decay, betas) stays as it was. None: does nothing.
    """
    if rate is None:
        return
    chosen = {id(parameter) for parameter in embedding_weights(model)}
    for group in list(optimizer.param_groups):
        ours = [p for p in group["params"] if id(p) in chosen]
        if not ours or "embedding" in group:
            continue
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
        options = {name: value for name, value in group.items() if name != "params"}
        optimizer.add_param_group({**options, "params": ours, "lr": rate, "embedding": True})
