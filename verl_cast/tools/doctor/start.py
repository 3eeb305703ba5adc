"""Where the run starts and ends: the checkpoint that verl would resume, and the number of training steps."""

from pathlib import Path

from omegaconf import DictConfig

from verl_cast.config.cast import MethodConfig
from verl_cast.config.words import command_words
from verl_cast.teacher.saved import path_of
from verl_cast.tools.doctor.lines import Line, error, note, ok, warning
from verl_cast.tools.doctor.memory import needs_copy


def steps(config: DictConfig, rows: int) -> tuple[int | None, list[Line]]:
    """Training steps of the whole run, as verl's trainer counts them; None where there are no rows to count.

    Args:
        rows: of the training data, after verl's filter.
    """
    if not rows:
        return None, []
    batch, trainer = config.data.train_batch_size, config.trainer
    if rows < batch:
        problem = f"{rows} training rows are fewer than data.train_batch_size={batch}: they never fill a batch."
        return None, [error("steps", problem)]
    epoch = rows // batch
    total = min(epoch * trainer.total_epochs, trainer.total_training_steps or epoch * trainer.total_epochs)
    return total, [note("steps", f"{total} training steps, {epoch} an epoch")]


def resume(config: DictConfig, method: MethodConfig | None, total: int | None) -> list[Line]:
    """verl resumes by itself from a checkpoint in default_local_dir; it must hold the teacher, too.

    Args:
        total: training steps of the run, if known.
    """
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    trainer, anew = config.trainer, "name another trainer.default_local_dir"
    latest = find_latest_ckpt_path(str(Path(trainer.default_local_dir).absolute()))
    if trainer.resume_mode == "disable" and latest is not None:
        there = f"the checkpoint {latest} is there, and trainer.resume_mode=disable ignores it"
        return [warning("start", f"from step 0: {there}; its files will be overwritten. To keep them, {anew}.")]
    if trainer.resume_mode == "resume_path":
        latest = trainer.resume_from_path
        if latest is None or "global_step_" not in latest or not Path(latest).is_dir():
            return [error("start", f"trainer.resume_from_path={latest} is no directory global_step_N.")]
    if latest is None:
        return [note("start", "from step 0; there is no checkpoint to resume from")]
    done = int(latest.rstrip("/").split("global_step_")[-1])
    if total is not None and done >= total:
        more = f"raise trainer.total_training_steps or trainer.total_epochs, or {anew}"
        return [error("start", f"all {total} steps are done in {latest}, and the run would end at once; {more}.")]
    ranks = trainer.nnodes * trainer.n_gpus_per_node
    saved = path_of(Path(latest) / "actor", rank="*", world_size=ranks)
    if method is None or any(saved.parent.glob(saved.name)) or not needs_copy(config, method.teacher):
        return [ok("start", f"resumes from {latest}, after step {done}")]
    snapshot = command_words({"teacher.missing_state": "snapshot"}, type(method))
    text = f"resumes from {latest}, which holds no self-teacher of {ranks} rank(s)"
    if method.teacher.missing_state == "snapshot":
        return [warning("start", f"{text}; a new one starts from the restored policy ({snapshot}).")]
    remedy = f"set {snapshot} to take a new teacher from the restored policy, or {anew} to start anew"
    return [error("start", f"{text}, so the run will stop. Resume with the number of ranks that saved it, {remedy}.")]
