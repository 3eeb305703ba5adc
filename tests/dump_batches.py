"""Test tool: writes what the update of every step trained on to $CAST_DUMP_DIR/step_<n>.pt, in a fixed row order.

Loaded into real runs through VERL_USE_EXTERNAL_MODULES; it wraps the trainer from outside and knows nothing of CAST.
"""

import os

import torch
import wrapt

FIELDS = ["responses", "response_mask", "rm_scores", "old_log_probs", "teacher_log_probs", "advantages", "uid"]


def _install(trainer_base):
    update_actor = trainer_base.PPOTrainer._update_actor

    def dumping_update_actor(self, batch, metrics):
        data = trainer_base.tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=[*FIELDS, "raw_prompt"]
        )
        rows = []
        for i in range(len(batch)):
            row = {name: data[name][i].clone() for name in FIELDS if name in data and name != "uid"}
            row["prompt"] = str(data["raw_prompt"][i])
            row["uid"] = str(data["uid"][i])
            rows.append(row)
        # uids are random and the batch's order follows lengths: sort by what was generated
        rows.sort(key=lambda row: (row["prompt"], row["responses"].tolist()))
        directory = os.environ["CAST_DUMP_DIR"]
        os.makedirs(directory, exist_ok=True)
        torch.save({"trainer": type(self).__name__, "rows": rows}, f"{directory}/step_{self.global_steps}.pt")
        return update_actor(self, batch, metrics)

    trainer_base.PPOTrainer._update_actor = dumping_update_actor


wrapt.register_post_import_hook(_install, "verl.trainer.ppo.v1.trainer_base")
