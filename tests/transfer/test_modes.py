"""Each mode trains what it says, keeps no gradient of the rest, and is saved and resumed whole."""

import copy

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import tiny_models
import tiny_training as tiny
from crosstill.errors import ConfigError
from crosstill.heads import under_adapters
from crosstill.training.adapters import save_weights
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.export import export
from crosstill.transfer.modes import MODES, prepare_mode, shares_body
from crosstill.transfer.self_teacher import self_teacher

SOURCE, TARGET = tiny.teacher_tokenizer(), tiny.student_tokenizer()
LORA = {"r": 4, "lora_alpha": 4}
IDS = torch.arange(3, 43).reshape(2, 20)


def source(tied=True):
    return tiny_models.llama(len(SOURCE) + 5, tied=tied, scale=2.0)


def student_of(mode, tied=True, **options):
    """A student in a mode, and its teacher."""
    if mode == "lora":
        pytest.importorskip("peft")
        options = {"peft": LORA, **options}
    model = source(tied)
    teacher = self_teacher(model, SOURCE, [mode])
    transplant(model, SOURCE, TARGET)
    return prepare_mode(model, mode, **options), teacher


def run_of(folder, mode, tied=True, **settings):
    student, teacher = student_of(mode, tied)
    return tiny.trainer(
        folder,
        model=student,
        teacher_model=teacher,
        processing_class=TARGET,
        teacher_processing_class=None,
        **{"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2, **settings},
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def kind(name):
    if "lora_" in name:
        return "adapter"
    return "tables" if "embed_tokens" in name or "lm_head" in name else "body"


TRAINED = {
    "embeddings": {"tables"},
    "lora": {"tables", "adapter"},
    "body": {"body"},
    "full": {"tables", "body"},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_trained(tmp_path, mode, tied):
    run = run_of(tmp_path, mode, tied, save_strategy="no")
    before = state(run.model)
    gradients = set()

    class Look(hf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
            named = model.named_parameters()
            gradients.update(name for name, weight in named if weight.grad is not None)

    run.add_callback(Look())
    run.train()
    moved = {n for n, value in run.model.state_dict().items() if not torch.equal(value, before[n])}
    assert {kind(name) for name in moved} == TRAINED[mode]
    trained = {name for name, w in run.model.named_parameters() if w.requires_grad}
    assert gradients == trained
    assert {kind(name) for name in trained} == TRAINED[mode]
    both_ends = {"embed_tokens", "lm_head"} if not tied else {"embed_tokens"}
    if "tables" in TRAINED[mode]:
        found = {name.split(".")[-2] for name in trained if kind(name) == "tables"}
        assert found == both_ends
    states = run.optimizer.state
    assert sum(w.numel() for w in states) == sum(
        w.numel() for w in run.model.parameters() if w.requires_grad
    )


@pytest.mark.parametrize("name", MODES)
def test_shared_bodies(name):
    assert shares_body(name) == ("body" not in TRAINED[name])


def test_the_adapter_is_on_all_seven_projections():
    student, _ = student_of("lora", peft={})
    config = student.peft_config["default"]
    assert (config.r, config.lora_alpha) == (64, 64)
    names = {n.split(".")[-4] for n, _ in student.named_parameters() if "lora_A" in n}
    seven = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names == seven


def test_equal_seeds_give_equal_adapters():
    weights = [
        {n: w for n, w in student_of("lora", seed=seed)[0].named_parameters() if "lora_A" in n}
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(w, weights[1][n]) for n, w in weights[0].items())
    assert not any(torch.equal(w, weights[2][n]) for n, w in weights[0].items())


@pytest.mark.parametrize("tied", [True, False])
def test_no_second_copy_of_the_tables(tied):
    student, _ = student_of("lora", tied)
    rows = [w for w in student.parameters() if w.shape[0] == len(TARGET)]
    assert len(rows) == (1 if tied else 2)


def saved_bytes(model, ids):
    """Bytes that autograd keeps for the backward pass, weights left out."""
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive: no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False).logits.sum()
    return sum(size for size, _ in kept.values())


def test_a_frozen_body_keeps_no_inputs_of_its_linear_layers():
    """A linear layer's input is needed for its weight's gradient alone."""
    sizes = {mode: saved_bytes(student_of(mode)[0].train(), IDS) for mode in MODES}
    hidden, inner, layers = 32, 64, 2
    # per layer the inputs of q k v (one), o, gate and up (one), down; and the head's
    inputs = IDS.numel() * 4 * layers * (3 * hidden + inner)
    assert sizes["full"] - sizes["embeddings"] >= inputs
    assert sizes["lora"] <= sizes["full"] + IDS.numel() * 4 * layers * 7 * LORA["r"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ["lora", "embeddings"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, mode, tied):
    settings = {"objectives": "prefix_kl", "embedding_learning_rate": 2e-2}
    whole = run_of(tmp_path, mode, tied, **settings)
    whole.train()
    (tmp_path / "checkpoint-4").rename(tmp_path / "gone")
    resumed = run_of(tmp_path, mode, tied, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert tiny.losses(resumed) == tiny.losses(whole)
    theirs = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    trained = [n for n, w in resumed.model.named_parameters() if w.requires_grad]
    assert trained == [n for n, w in whole.model.named_parameters() if w.requires_grad]
    assert resumed.origin().teacher == whole.origin().teacher


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapters_file_has_the_tables_once(tmp_path, tied):
    run = run_of(tmp_path / "run", "lora", tied, save_strategy="no")
    run.train()
    save_weights(run.model, tmp_path / "adapter")
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = [name for name in found if kind(name) == "tables"]
    assert len(names) == (1 if tied else 2)
    assert not [name for name in found if kind(name) == "body"]
    base = under_adapters(run.model)
    end = found["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(end, base.get_input_embeddings().weight)


@pytest.mark.parametrize("tied", [True, False])
def test_the_adapter_loads_with_peft_alone(tmp_path, tied):
    peft = pytest.importorskip("peft")
    run = run_of(tmp_path / "run", "lora", tied, save_strategy="no")
    run.train()
    save_weights(run.model, tmp_path / "adapter")
    base = source(tied)
    base.resize_token_embeddings(len(TARGET))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    trained = run.model.eval()
    assert torch.equal(loaded(IDS).logits, trained(IDS).logits)


def test_what_peft_has_copied_is_saved_as_peft_does(tmp_path):
    peft = pytest.importorskip("peft")
    both = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **LORA, **both)
    student = peft.get_peft_model(source(), config)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    save_weights(student, tmp_path)
    loaded = peft.PeftModel.from_pretrained(source(), tmp_path).eval()
    assert torch.equal(loaded(IDS).logits, student.eval()(IDS).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_and_exported(tmp_path, tied):
    run = run_of(tmp_path / "run", "lora", tied, save_strategy="no")
    run.train()
    expected = {}
    for name, module in under_adapters(run.model).named_modules():
        if "lora_A" in dict(module.named_children()):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            scale = module.scaling["default"]
            expected[f"{name}.weight"] = (module.base_layer.weight + scale * (b @ a)).detach()
    assert expected
    embedding = run.model.get_input_embeddings().weight.detach().clone()
    adapted = run.model.eval()(IDS).logits
    merged = copy.deepcopy(run.model).merge_and_unload()
    weights = merged.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is tied
    torch.testing.assert_close(merged(IDS).logits, adapted, atol=1e-4, rtol=1e-4)
    export(merged, TARGET, tmp_path / "model")
    read = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(read(IDS).logits, merged(IDS).logits)


def test_stages():
    """An adapter stays through a stage that freezes it, and is merged before the body trains."""
    student, _ = student_of("lora")
    adapters = {n for n, w in student.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    same = prepare_mode(student, "embeddings")
    assert same is student
    assert not any(w.requires_grad for n, w in student.named_parameters() if n in adapters)
    prepare_mode(student, "lora")
    trained = {n for n, w in student.named_parameters() if w.requires_grad}
    assert trained == adapters | {"base_model.model.model.embed_tokens.weight"}
    logits = student.eval()(IDS).logits
    merged = prepare_mode(student, "full")
    assert isinstance(merged, hf.LlamaForCausalLM)
    assert all(w.requires_grad for w in merged.parameters())
    torch.testing.assert_close(merged(IDS).logits, logits, atol=1e-4, rtol=1e-4)


def test_embeddings_then_an_adapter():
    model, _ = student_of("embeddings")
    student = prepare_mode(model, "lora", peft=LORA)
    assert under_adapters(student) is model
    kinds = {kind(n) for n, w in student.named_parameters() if w.requires_grad}
    assert kinds == {"tables", "adapter"}


def test_wrong_settings():
    with pytest.raises(ConfigError, match=r"expected embeddings \| lora \| body \| full"):
        student_of("adapter")
    with pytest.raises(ConfigError, match="peft"):
        student_of("lora", peft={"rank": 4})
    with pytest.raises(ConfigError, match="expected a transformers model"):
        prepare_mode(torch.nn.Linear(2, 2), "full")
