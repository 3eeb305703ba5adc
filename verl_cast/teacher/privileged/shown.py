"""What a privileged teacher is shown of every row of a batch, read from TransferQueue by the trainer."""

from typing import Any

import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from verl_cast import wire
from verl_cast.config.baselines import BaselineConfig
from verl_cast.teacher.privileged.references import peers, references


def shown_to_teacher(batch: KVBatchMeta, method: BaselineConfig, tokenizer: Any) -> TensorDict:
    """The field SHOWN_TO_TEACHER of every row: its reference, or a correct response of its group (`peer`)."""

    def read(*names: str) -> TensorDict:
        return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(names))

    if method.teacher.context == "peer":
        data = read("uid", "responses", "response_mask", "rm_scores")
        masks = data["response_mask"].unbind()
        written = [ids[mask.bool()] for ids, mask in zip(data["responses"].unbind(), masks, strict=True)]
        scores = [float(row.sum()) for row in data["rm_scores"].unbind()]
        threshold = method.correct_threshold
        correct = [len(ids) > 0 and score > threshold for ids, score in zip(written, scores, strict=True)]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        shown = peers([str(uid) for uid in tu.get(data, "uid")], batch.keys, correct, texts)
    else:
        column = method.teacher.reference_key.split(".")[0]
        shown = references({column: list(tu.get(read(column), column))}, method.teacher.reference_key, batch.keys)
    return tu.get_tensordict({wire.SHOWN_TO_TEACHER: shown})
