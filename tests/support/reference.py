"""LongPO on plain Hugging Face models in fp32, one sequence at a time: the reference for the Megatron path.

Written from the formulas alone; nothing of the project is imported.
"""

import math

import torch


def _logprobs(model, ids):
    """log p(ids[t + 1] | ids[: t + 1]) for every t, [len(ids) − 1]."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def longpo_step(model, records, beta, weight):
    """Loss and metrics of one global batch (means over its records); gradients are left in `model`'s parameters.

    `records` are dicts of plain lists: trunk, chosen, rejected (token ids), chosen_spans, rejected_spans, ignore_spans,
    ref_chosen, ref_rejected (one list of log-probs per turn).
    """
    totals = {}
    for record in records:
        sums = {}
        for side in ("chosen", "rejected"):
            ids = record["trunk"] + record[side]
            logprobs = _logprobs(model, ids)
            policy = 0.0
            for start, end in record[f"{side}_spans"]:
                for place in range(start, end):
                    policy = policy + logprobs[len(record["trunk"]) + place - 1]
            sums[side] = policy
            sums[f"ref_{side}"] = math.fsum(value for turn in record[f"ref_{side}"] for value in turn)
            if side == "chosen":
                ignored = {p for start, end in record["ignore_spans"] for p in range(start, end)}
                kept = [p for p in range(1, len(ids)) if p not in ignored]
                nll = -sum(logprobs[p - 1] for p in kept) / len(kept)
        reward_chosen = beta * (sums["chosen"] - sums["ref_chosen"])
        reward_rejected = beta * (sums["rejected"] - sums["ref_rejected"])
        margin = reward_chosen - reward_rejected
        preference = torch.log1p(torch.exp(-margin))
        loss = nll + weight * preference
        (loss / len(records)).backward()
        values = {
            "loss": loss,
            "loss/nll": nll,
            "loss/longpo": preference,
            "rewards/chosen": reward_chosen,
            "rewards/rejected": reward_rejected,
            "rewards/margins": margin,
            "rewards/accuracies": 1.0 if margin > 0 else 0.0,
            "logps/chosen": sums["chosen"],
            "logps/rejected": sums["rejected"],
            "ref_logps/chosen": sums["ref_chosen"],
            "ref_logps/rejected": sums["ref_rejected"],
        }
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + torch.as_tensor(value).item() / len(records)
    return totals
