"""A whole transfer: what it writes, what the stages train, how it stops, resumes and refuses."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers as hf
import yaml
from datasets import Dataset
from safetensors.torch import load_file

import tiny_run
from crosstill.errors import CheckpointError, ConfigError
from crosstill.hub import load_model, load_tokenizer
from crosstill.training import rewording
from crosstill.training.trainer import DistillTrainer
from crosstill.transfer import load_transfer, run, transfer, transplant
from crosstill.transfer.enriched import load_enriched
from crosstill.transfer.record import Record
from crosstill.transfer.target import target_tokenizer

UNMEASURED = {"prompts": {}, "eval_texts": []}
STAGES = [{"train": "embeddings", "max_steps": 2}, {"train": "full", "max_steps": 2}]
KEYS = {
    "teacher_divergence_before",
    "teacher_divergence_after",
    "teacher_divergence_after_initialisation",
    "gap_closed",
    "teacher_bits_per_byte",
    "student_bits_per_byte_before",
    "student_bits_per_byte_after",
    "target",
    "initialiser",
    "stages",
    "steps",
    "student_tokens",
    "seconds",
    "aligned_byte_fraction",
    "rows_skipped",
    "objective",
    "seed",
    "versions",
    "recipe",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of the models, made once."""
    return tiny_run.make_run(tmp_path_factory.mktemp("models")).parent


def recipe_of(folder, models, **changes):
    return load_transfer(tiny_run.make_transfer(folder, models, **changes), {"logging_steps": 1})


def weights(folder):
    return load_file(folder / "model.safetensors")


def body(folder):
    return {
        k: v for k, v in weights(folder).items() if "embed_tokens" not in k and "lm_head" not in k
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_of(folder, models, stages=STAGES)
    return folder / "out", recipe, transfer(recipe)


def test_the_summary_has_every_key_and_is_what_was_returned(done):
    out, recipe, summary = done
    written = json.loads((out / "summary.json").read_text())
    assert set(written) >= KEYS
    assert written == json.loads(json.dumps(summary))
    assert (written["steps"], written["objective"]) == (4, "prefix_kl")
    assert [stage["steps"] for stage in written["stages"]] == [2, 2]
    assert sum(s["student_tokens"] for s in written["stages"]) == written["student_tokens"] > 0
    report = written["initialiser"]["report"]
    assert sum(report.values()) == written["target"]["vocabulary"]
    assert written["teacher_divergence_before"] > 0.01
    assert written["teacher_divergence_after"] == written["stages"][1]["teacher_divergence"]
    assert written["recipe"] == json.loads(json.dumps(recipe.plain()))


def test_the_rows_have_words_that_the_target_must_spell(models, tmp_path):
    names = {"model": str(models / "teacher"), "to": str(models / "student")}  # to a smaller one
    recipe = recipe_of(tmp_path, models, reword=0.5, stages=STAGES, **names, **UNMEASURED)
    transfer(recipe)
    (file,) = (tmp_path / "out" / rewording.REWORDED).glob("*.arrow")
    read = Dataset.from_file(str(file))
    with open(recipe.train, encoding="utf-8") as file:
        given = [json.loads(line) for line in file]
    assert len(read) == 4  # two steps of two rows
    for row in read:
        old = given[row["row_index"]]
        keys = [key for key in ("prompt", "completion", "text") if key in old]
        assert all(row[key] is not None for key in keys)
        assert [row[key].count(" ") for key in keys] == [old[key].count(" ") for key in keys]
    assert any(row["text"] != given[row["row_index"]].get("text") for row in read)


@pytest.mark.parametrize("share", [0, 0.5])
def test_rows_are_reworded_by_the_model_as_it_was(models, tmp_path, monkeypatch, share):
    asked = []

    def dataset(self, rows, cache):
        asked.append((self.teacher.encoder.vocab_size, self.share, cache.parent))
        return rows

    monkeypatch.setattr(rewording.Rewording, "dataset", dataset)
    recipe = recipe_of(tmp_path, models, reword=share, stages=STAGES, **UNMEASURED)
    transfer(recipe)
    vocabulary = len(load_tokenizer(recipe.model))
    out = tmp_path / "out"
    assert asked == ([(vocabulary, share, out / rewording.REWORDED)] if share else [])


def test_a_run_that_goes_on_reads_the_same_rows(models, tmp_path, monkeypatch):
    recipe = recipe_of(tmp_path, models, stages=STAGES, **UNMEASURED)
    whole = transfer(recipe)
    (tmp_path / "out").rename(tmp_path / "whole")
    train, calls = run._Run.train, []

    def stops(self, stage, resume):
        calls.append(stage)
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(self, stage, resume)

    monkeypatch.setattr(run._Run, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        transfer(recipe)
    monkeypatch.setattr(run._Run, "train", train)
    monkeypatch.setattr(rewording.Rewording, "rows", None)  # what is made is read again
    again = transfer(recipe, resume=True)
    assert again["student_tokens"] == whole["student_tokens"]
    assert same(weights(tmp_path / "out" / "model"), weights(tmp_path / "whole" / "model"))


def test_the_files(done):
    out, _, summary = done
    names = {path.name for path in out.iterdir()}
    assert names >= {"model", "metrics.jsonl", "report.html", "alignment.html", "stages"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_divergence" in line] == [0, 2, 4]
    page = (out / "report.html").read_text()
    assert f"{summary['teacher_divergence_after']:.3f}" in page
    assert "on the tokens of teacher" in page


def test_the_card_says_what_was_measured_and_gives_no_folder_away(done, models):
    out, _, summary = done
    card = (out / "model" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert "base_model" not in yaml.safe_load(front)
    assert str(models) not in card
    assert f"{summary['teacher_divergence_before']:.3f}" in text
    assert f"{summary['teacher_divergence_after']:.3f}" in text
    assert "full, 2 steps" in text


PLAIN = """
import sys
sys.modules["crosstill"] = None
import torch, transformers
from safetensors.torch import save_file
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Der Gr\\u00f6\\u00dfe nach \\u6771\\u4eac", return_tensors="pt").input_ids
save_file({"ids": ids, "logits": model(ids).logits.detach()}, sys.argv[2])
"""


def test_a_fresh_process_without_crosstill_gives_the_same_bits(done, tmp_path):
    out, _, _ = done
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    file = tmp_path / "there.safetensors"
    command = [sys.executable, "-c", PLAIN, str(out / "model"), str(file)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    there = load_file(file)
    model = load_model(out / "stages" / "2-full" / "model")
    tokenizer = load_tokenizer(out / "model")
    assert there["ids"][0].tolist() == tokenizer("Der Größe nach 東京").input_ids
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(model(there["ids"]).logits, there["logits"])
    finally:
        torch.set_num_threads(threads)


def test_each_stage_trains_what_it_says(done, models):
    stages = done[0] / "stages"
    initial, first, second = (
        stages / name / "model" for name in ("0-initial", "1-embeddings", "2-full")
    )
    assert same(body(initial), body(models / "student"))
    assert same(body(first), body(initial))
    assert not same(weights(first), weights(initial))
    assert not any(torch.equal(v, body(first)[k]) for k, v in body(second).items() if "mlp" in k)
    assert same(weights(done[0] / "model"), weights(second))


def test_a_finished_run_is_neither_repeated_nor_overwritten(done):
    out, recipe, summary = done
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert transfer(recipe, resume=True)["seconds"] == summary["seconds"]
    with pytest.raises(ConfigError, match="not empty"):
        transfer(recipe)
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_without_data_the_embeddings_are_initialised_and_that_is_exported(models, tmp_path):
    recipe = recipe_of(tmp_path, models, train=None, training={"use_cpu": True})
    summary = transfer(recipe)
    assert (summary["steps"], summary["stages"], summary["gap_closed"]) == (0, [], 0.0)
    model, source = load_model(models / "student"), load_tokenizer(models / "student")
    transplant(model, source, target_tokenizer(models / "teacher", source))
    assert same(dict(load_model(tmp_path / "out" / "model").state_dict()), dict(model.state_dict()))
    assert "Nothing was trained" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_blocks_that_learn_to_spell_are_compiled_where_the_recipe_says_so(
    models, tmp_path, monkeypatch
):
    monkeypatch.setattr("crosstill.blocks.shutil.which", lambda name: None)
    training = {"max_steps": 0, "use_cpu": True, "compile_blocks": True}
    changes = {"initial": {"spell": {"spelled": 2_000}}, "training": training}
    recipe = recipe_of(tmp_path, models, **changes, **UNMEASURED)
    assert not recipe.stages  # what is refused is the beginning, not the training
    with pytest.raises(ConfigError, match=r"compile_blocks is true, but there is no C\+\+"):
        transfer(recipe)


def test_first_blocks_that_learn_to_spell_keep_a_teacher_of_their_own(models, tmp_path):
    initial = {"spell": {"spelled": 2_000, "epochs": 1}}
    recipe = recipe_of(tmp_path, models, initial=initial, mode="embeddings", **UNMEASURED)
    assert not recipe.one_body
    assert load_transfer(tmp_path / "transfer.yaml", {"initial": "fvt"}).one_body
    transfer(recipe)
    before, after = body(models / "student"), body(tmp_path / "out" / "model")
    other = {name for name in before if not torch.equal(before[name], after[name])}
    assert other == {name for name in before if name.startswith("model.layers.0.")}


def test_bytes(models, tmp_path):
    summary = transfer(recipe_of(tmp_path, models, to="bytes", **UNMEASURED))
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert len(tokenizer("Grüße 東", add_special_tokens=False).input_ids) == 11
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.get_input_embeddings().num_embeddings == summary["target"]["vocabulary"]
    assert summary["student"] == "student on bytes"


def test_an_enriched_byte_model(models, tmp_path):
    summary = transfer(recipe_of(tmp_path, models, to="bytes", enriched=True, stages=STAGES))
    out = tmp_path / "out"
    model = load_enriched(out / "model")
    first = load_enriched(out / "stages" / "0-initial" / "model")
    old = load_model(models / "student").get_input_embeddings().weight
    assert torch.equal(model.subwords.weight, old)
    assert model.get_input_embeddings().weight[:256].abs().sum() > 0  # they began at zero
    assert not torch.equal(weights_of_body(model), weights_of_body(first))
    assert summary["target"]["enriched"]
    assert summary["teacher_divergence_after"] != summary["teacher_divergence_before"]
    assert len(load_tokenizer(out / "model").encode("Grüße 東", add_special_tokens=False)) == 11
    card = (out / "model" / "README.md").read_text()
    assert "load_enriched" in card
    assert "AutoModelForCausalLM" not in card
    assert "library_name: crosstill" in card


def weights_of_body(model):
    return model.model.model.layers[0].mlp.up_proj.weight


def test_an_enriched_model_with_an_adapter_over_a_shared_body(models, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    stages = [STAGES[0], {"train": "lora", "max_steps": 2}]
    changes = {"to": "bytes", "enriched": True, "stages": stages, **UNMEASURED}
    transfer(recipe_of(tmp_path / "whole", models, **changes))
    recipe = recipe_of(tmp_path / "cut", models, **changes)
    assert recipe.one_body
    with monkeypatch.context() as patch:
        Fuse(patch, DistillTrainer, "training_step", in_stage("2-lora", 1))
        with pytest.raises(Killed):
            transfer(recipe)
    transfer(recipe, resume=True)
    whole, cut = (
        load_enriched(tmp_path / name / "out" / "model").state_dict() for name in ("whole", "cut")
    )
    assert same(whole, cut)


# --- stopping and going on -----------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a process that ends at this point."""


class Fuse:
    """Ends what it wraps once, when the condition holds."""

    def __init__(self, monkeypatch, owner, name, when):
        self.burnt, inner = False, getattr(owner, name)

        def wrapped(*args, **kwargs):
            if not self.burnt and when(*args, **kwargs):
                self.burnt = True
                raise Killed
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)


def in_stage(name, step):
    return lambda self, *_: self.folder.name == name and self.state.global_step == step


def test_killed_at_every_joint_it_ends_where_an_undisturbed_run_ends(models, tmp_path, monkeypatch):
    training = {
        "use_cpu": True, "save_steps": 1, "per_device_train_batch_size": 2, "report_to": "none",
        "max_length": 64, "lr_scheduler_type": "constant",
    }  # fmt: skip
    changes = {"stages": STAGES, "training": training, **UNMEASURED}
    transfer(recipe_of(tmp_path / "whole", models, **changes))
    recipe_of(tmp_path / "cut", models, **changes)
    joints = [
        (run, "transplant", lambda *_, **__: True),
        (Record, "add", lambda self, name, *_: name == "0-initial"),
        (DistillTrainer, "training_step", in_stage("1-embeddings", 1)),
        (Record, "add", lambda self, name, *_: name == "1-embeddings"),
        (DistillTrainer, "training_step", in_stage("2-full", 0)),
        (DistillTrainer, "training_step", in_stage("2-full", 1)),
        (Record, "add", lambda self, name, *_: name == "2-full"),
        (run, "export", lambda *args, **_: args[2].parent.name == "cut_out"),
        (run, "complete", lambda *_: True),
    ]
    overrides = {"output_dir": str(tmp_path / "cut_out"), "logging_steps": 1}
    recipe = load_transfer(tmp_path / "cut" / "transfer.yaml", overrides)
    for owner, name, when in joints:
        with monkeypatch.context() as patch:
            fuse = Fuse(patch, owner, name, when)
            with pytest.raises(Killed):
                transfer(recipe, resume=True)
            assert fuse.burnt
    transfer(recipe, resume=True)
    assert same(
        weights(tmp_path / "cut_out" / "model"), weights(tmp_path / "whole" / "out" / "model")
    )
    lines = [json.loads(line) for line in (tmp_path / "cut_out" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_an_adapter_over_a_shared_body_goes_on_as_it_would_have(models, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    changes = {
        "stages": [STAGES[0], {"train": "lora", "max_steps": 3, "save_steps": 1}],
        "peft": {"r": 4},
        **UNMEASURED,
    }
    transfer(recipe_of(tmp_path / "whole", models, **changes))
    recipe = recipe_of(tmp_path / "cut", models, **changes)
    with monkeypatch.context() as patch:
        Fuse(patch, DistillTrainer, "training_step", in_stage("2-lora", 2))
        with pytest.raises(Killed):
            transfer(recipe)
    taught = []
    with monkeypatch.context() as patch:
        inner = run.prepare_mode

        def noted(student, *args, **kwargs):
            taught.append(student)
            return inner(student, *args, **kwargs)

        patch.setattr(run, "prepare_mode", noted)
        transfer(recipe, resume=True)
    assert len(taught) == 1
    whole, cut = tmp_path / "whole" / "out", tmp_path / "cut" / "out"
    assert same(weights(cut / "model"), weights(whole / "model"))
    assert (cut / "adapter" / "adapter_config.json").exists()
    moved = [weights(whole / "model")[k] - v for k, v in body(models / "student").items()]
    ranks = [torch.linalg.matrix_rank(m, rtol=1e-3).item() for m in moved if m.ndim == 2]
    assert max(ranks) == 4


def test_a_body_that_is_taken_over_is_the_same_memory(models):
    one, other = load_model(models / "student"), load_model(models / "student")
    with torch.no_grad():
        one.get_input_embeddings().weight.zero_()
    run.adopt_body(one, other)
    shared = {id(weight) for weight in other.parameters()} & {id(w) for w in one.parameters()}
    assert len(shared) == len(list(other.parameters())) - 1
    assert not one.get_input_embeddings().weight.any()
    assert other.get_input_embeddings().weight.any()


@pytest.fixture(scope="module")
def stopped(models, tmp_path_factory):
    """A run that ended between its stages."""
    folder = tmp_path_factory.mktemp("stopped")
    recipe = recipe_of(folder, models, stages=STAGES, **UNMEASURED)
    with pytest.MonkeyPatch.context() as patch:
        Fuse(patch, DistillTrainer, "training_step", in_stage("2-full", 0))
        with pytest.raises(Killed):
            transfer(recipe)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "bytes"}, "to: .* -> 'bytes'"),
        ({"initial": "fit"}, "initial: 'fvt' -> 'fit'"),
        ({"stages": [{**STAGES[0], "learning_rate": 0.5}, STAGES[1]]}, "learning_rate: .* -> 0.5"),
        ({"stages": [STAGES[1]]}, "1-embeddings"),
    ],
)
def test_another_run_is_not_gone_on_with(stopped, models, changes, message):
    values = yaml.safe_load((stopped / "transfer.yaml").read_text()) | changes
    other = stopped / "other.yaml"
    other.write_text(yaml.safe_dump(values))
    with pytest.raises(CheckpointError, match=message):
        transfer(load_transfer(other), resume=True)


def test_a_damaged_model_of_a_stage_is_not_gone_on_with(stopped):
    file = stopped / "out" / "stages" / "1-embeddings" / "model" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(CheckpointError, match="SHA-256"):
            transfer(load_transfer(stopped / "transfer.yaml"), resume=True)
    finally:
        file.write_bytes(whole)


@pytest.mark.slow
def test_two_processes_end_with_one_model(models, tmp_path):
    path = tiny_run.make_transfer(tmp_path, models, stages=STAGES)
    port = str(30_500 + os.getpid() % 1000)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*start, "--master_port", port, "-m", "crosstill", "transfer", str(path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["steps"], summary["rows"]) == (4, 16)  # two rows in each process and step
    model = tmp_path / "out" / "model"
    assert same(weights(model), weights(tmp_path / "out" / "stages" / "2-full" / "model"))
