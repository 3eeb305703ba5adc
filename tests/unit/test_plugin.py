"""The plugin in fresh processes registers itself, reports when it cannot, and refuses bad runs before Ray starts."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
import warm_python
from omegaconf import OmegaConf


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    """In a process that has imported torch, transformers and vLLM, and nothing of verl."""
    return subprocess.run(
        [warm_python.program(), "-c", textwrap.dedent(code)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_importing_verl_is_enough():
    done = python(
        """
        import verl, sys
        assert "verl.trainer.ppo.core_algos" not in sys.modules, "registration stays lazy"
        from verl_cast import plugin
        from verl.trainer.ppo import core_algos
        import verl.utils.config as config
        estimator, checked = core_algos.get_adv_estimator_fn("cast"), config.validate_config
        assert plugin.problems == [] and core_algos.get_policy_loss_fn("cast")
        # again, as a second entry point or a reload of the module would
        import importlib
        importlib.reload(plugin)
        assert core_algos.get_adv_estimator_fn("cast") is estimator and config.validate_config is checked
        from verl.trainer.ppo.v1.trainer_base import PPOTrainer
        assert plugin.problems == []
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_verl_without_plugins_is_refused_in_one_sentence():
    done = python(
        """
        import verl
        verl.__version__ = "0.8.3"
        from verl_cast import plugin
        from verl.trainer.ppo import core_algos
        assert "cast" not in core_algos.ADV_ESTIMATOR_REGISTRY and "cast" not in core_algos.POLICY_LOSS_REGISTRY
        import verl.utils.config, verl.trainer.ppo.v1.trainer_base as base
        assert "__new__" not in vars(base.PPOTrainer)
        core_algos.get_adv_estimator_fn("cast")
        """,
        VERL_USE_EXTERNAL_PLUGINS="none",
    )
    assert "verl 0.8.3 is installed, and verl_cast needs 0.9.0 or newer. Nothing is registered" in done.stderr
    assert "Unknown advantage estimator simply: cast" in done.stderr


@pytest.mark.parametrize("version", ["0.9.0", "0.10.3"])
@pytest.mark.parametrize("seams_hold", [True, False])
def test_an_untested_verl_runs_with_a_warning_where_every_seam_holds(version, seams_hold):
    """Every seam, also of modules that only a worker imports, before Ray starts."""
    done = python(
        f"""
        import verl
        verl.__version__ = "{version}"
        from verl_cast import plugin
        assert plugin.problems == []
        from verl_cast.tools.run_config import compose
        from verl.utils.config import validate_config
        import verl.workers.engine_workers as workers
        if not {seams_hold}:
            del workers.TrainingWorker.infer_batch
        config = compose([
            "algorithm.adv_estimator=cast", "actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=8",
            "actor_rollout_ref.actor.use_dynamic_bsz=True",
        ])
        try:
            validate_config(config, False, False)
        except Exception as error:
            print("refused:", type(error).__name__, error)
        """,
        VERL_USE_EXTERNAL_PLUGINS="none",
    )
    assert done.returncode == 0, done.stderr
    warning = f"[verl_cast] warning: verl {version}: verl_cast was tested with verl 0.9.1."
    assert (warning in done.stdout) == seams_hold == ("CAST is active" in done.stdout)
    missing = "refused: SeamChanged verl_cast relies on verl.workers.engine_workers.TrainingWorker.infer_batch"
    assert (missing in done.stdout) == (not seams_hold)


def test_a_changed_seam_is_loud_and_stops_cast_but_not_grpo():
    done = python(
        """
        import verl
        from verl.trainer.ppo import core_algos
        core_algos.agg_loss = lambda loss_matrix, mask: None
        from verl_cast import plugin
        assert "cast" not in core_algos.ADV_ESTIMATOR_REGISTRY, "nothing is half registered"
        from omegaconf import OmegaConf
        from verl.utils.config import validate_config
        try:
            validate_config(OmegaConf.create({"algorithm": {"adv_estimator": "cast"}}), False, False)
        except RuntimeError as error:
            print("refused:", error)
        """,
        VERL_USE_EXTERNAL_PLUGINS="none",
    )
    sentence = "verl_cast relies on verl.trainer.ppo.core_algos.agg_loss(loss_mat, "
    assert sentence in done.stderr, "logged as an error"
    assert "refused: algorithm.adv_estimator=cast: CAST is not available" in done.stdout and sentence in done.stdout


def test_a_run_begins_with_what_it_is_and_what_to_think_about():
    done = python(
        """
        from verl_cast.tools.run_config import compose
        from verl.utils.config import validate_config
        rollout = "actor_rollout_ref.rollout"
        config = compose([
            "algorithm.adv_estimator=cast", "trainer.n_gpus_per_node=1", f"{rollout}.name=vllm", f"{rollout}.n=2",
            f"{rollout}.log_prob_micro_batch_size_per_gpu=1", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        ])
        validate_config(config, False, False)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "CAST is active: all defaults" in done.stdout
    trust, rounding = re.findall(r"\[verl_cast\] warning: (.*)", done.stdout)
    assert "destroys a policy" in trust and "++algorithm.cast.trust=measured" in trust
    assert "decides the sign of small gaps" in rounding and "++algorithm.cast.gap_deadzone=noise" in rounding


def test_verls_own_command_refuses_a_bad_run_before_ray_starts_and_says_all_that_is_wrong():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "verl.trainer.main_ppo",
            "algorithm.adv_estimator=cast",
            "+algorithm.cast.flip=sideways",
            "+algorithm.cast.gap_weight=abc",
            "+algorithm.cats.flip=none",
            "actor_rollout_ref.rollout.n=1",
            "actor_rollout_ref.actor.policy_loss.loss_mode=nope",
        ],
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    for sentence in (
        "algorithm.cast.flip='sideways': must be one of both, correct, wrong, none.",
        "algorithm.cast.gap_weight='abc': must be a finite number.",
        "algorithm.cats.flip='none': nothing reads a group algorithm.cats; did you mean algorithm.cast?",
        "actor_rollout_ref.rollout.n=1: CAST compares the responses of a group",
        "actor_rollout_ref.actor.policy_loss.loss_mode='nope': verl has no such loss",
    ):
        assert sentence in done.stderr
    assert "ray init kwargs" not in done.stdout


@pytest.mark.parametrize("estimator", ["cast", "grpo"])
def test_the_estimator_alone_chooses_the_trainer(estimator):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from verl_cast.training.trainer import SelfTeacherTrainerMixin

    config = OmegaConf.create({"algorithm": {"adv_estimator": estimator}})
    trainer = PPOTrainer.__new__(PPOTrainerSync, config=config)
    assert isinstance(trainer, PPOTrainerSync)
    assert isinstance(trainer, SelfTeacherTrainerMixin) == (estimator == "cast")
    assert (type(trainer) is PPOTrainerSync) == (estimator != "cast")
