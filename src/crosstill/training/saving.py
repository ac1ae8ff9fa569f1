"""A trainer that saves whole checkpoints, without pickle, and resumes only its own run."""

import logging
import shutil
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from crosstill.errors import CheckpointError, ConfigError
from crosstill.training import checkpoint as ckpt
from crosstill.training.adapters import save_weights
from crosstill.training.checkpoint import Origin
from crosstill.training.fingerprint import versions
from crosstill.training.learnable import Learnable
from crosstill.training.output import locked
from crosstill.training.randomness import random_state, set_random_state
from crosstill.training.state import load_state, save_state

logger = logging.getLogger(__name__)


class SavingTrainer(Trainer):
    """`transformers.Trainer` with checkpoints that are whole or do not count."""

    learnable: Learnable

    def origin(self) -> Origin:
        """What this run is made of."""
        raise NotImplementedError

    def progress(self) -> dict[str, float]:
        """Sums of the run that a resumed one goes on with."""
        raise NotImplementedError

    def set_progress(self, sums: dict[str, float]) -> None:
        """Goes on with saved sums."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(str(self.args.output_dir))

    # --- starting -------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Trains, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: True: the newest whole checkpoint of the output folder (the
                reasons why later ones are refused are logged); a folder: that one; None: from
                the start.
            **kwargs: As for `transformers.Trainer.train`.

        Raises:
            CheckpointError: There is no whole checkpoint, or it belongs to another run.
            ConfigError: Without resuming, the output folder has checkpoints already; or another
                process works there.
            NumericsError: A loss or a gradient is not finite. No weight was changed by it.
        """
        if not self.args.should_save:
            start = self._start_folder(resume_from_checkpoint)
            return super().train(resume_from_checkpoint=start, **kwargs)
        with locked(self.folder):
            start = self._start_folder(resume_from_checkpoint)
            for name in ckpt.clean(self.folder):
                logger.warning("removed %s, which a process that ended early had left", name)
            return super().train(resume_from_checkpoint=start, **kwargs)

    def _start_folder(self, wanted: str | Path | bool | None) -> str | None:
        if not wanted:
            found, _ = ckpt.newest_complete(self.folder)
            if found is not None:
                raise ConfigError(
                    f"output_dir {self.folder} has checkpoints already (newest: {found.name}). "
                    f"Resume (resume_from_checkpoint=True), or name another folder."
                )
            return None
        if wanted is True:
            folder, refused = ckpt.newest_complete(self.folder)
            for line in refused:
                logger.warning("not resumed from %s", line)
            if folder is None:
                reasons = "; ".join(refused) or "there is none"
                raise CheckpointError(f"no whole checkpoint in {self.folder}: {reasons}")
        else:
            folder = Path(wanted)
        ckpt.check_origin(ckpt.verify(folder), self.origin())
        self.set_progress(load_state(folder, "progress"))
        logger.info("resuming from %s", folder)
        return str(folder)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Takes no step where a run is resumed at its end; transformers would take one too many."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # --- saving ---------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes everything beside, then renames: see `crosstill.training.checkpoint`."""
        step = self.state.global_step
        folder = ckpt.unfinished_folder(self.folder, step)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.store_flos()
        progress = self.progress()
        try:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._commit(folder, step, progress)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written ({error}); earlier ones are "
                f"untouched. Make room or mend {self.folder}, then resume."
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(ckpt.checkpoint_folder(self.folder, step)))

    def _commit(self, folder: Path, step: int, progress: dict[str, float]) -> None:
        best = self.state.best_global_step
        best_folder = ckpt.checkpoint_folder(self.folder, best) if best else None
        if best_folder is not None and (best == step or best_folder.exists()):
            self.state.best_model_checkpoint = str(best_folder)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                noted = cast(dict[str, Any], self.state.stateful_callbacks)  # mistyped upstream
                noted[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / "trainer_state.json"))
        save_state(progress, folder, "progress")
        ckpt.commit(folder, self.folder, step, self.origin(), versions())
        ckpt.rotate(self.folder, self.args.save_total_limit, best_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Writes model and tokenizer; unlike transformers', no pickle of the settings."""
        if not self.args.should_save:
            return
        folder = output_dir or str(self.folder)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        save_weights(model, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            for name, part in self._stateful().items():
                save_state(part.state_dict(), Path(output_dir), name)
            self.learnable.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            for name, part in self._stateful().items():
                part.load_state_dict(load_state(Path(checkpoint), name))
            self.learnable.load(Path(checkpoint))

    def _stateful(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "scheduler": self.lr_scheduler}

    def _save_rng_state(self, output_dir: str) -> None:
        save_state(random_state(), Path(output_dir), f"random_{self.args.process_index}")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            name = f"random_{self.args.process_index}"
            set_random_state(load_state(Path(checkpoint), name))

    def _save_scaler(self, output_dir: str) -> None:
        """There is none: fp16 is refused."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: fp16 is refused."""
