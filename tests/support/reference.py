"""LongPO on plain Hugging Face models in fp32, one sequence at a time: the reference for the Megatron path.

Written from the formulas alone; nothing of the project is imported.
"""

import math

import torch


def _logprobs(model, ids):
    """log p(ids[t + 1] | ids[: t + 1]) for every t, [len(ids) − 1]."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def _preference(ratios, beta, shape, target, exchanged):
    """How much the two answers' log-ratios (chosen, rejected) are not what the shape wants; the mean over exchanges."""
    if exchanged:
        right, wrong = (_preference(pair, beta, shape, target, 0) for pair in (ratios, ratios[::-1]))
        return right + exchanged * (wrong - right)
    h = ratios[0] - ratios[1]
    if shape == "ipo":
        return (h - 1 / (2 * beta)).square()
    if shape == "hinge":
        return torch.clamp(1 - beta * h, min=0.0)
    return torch.log1p(torch.exp(target - beta * h))


def _short_sums(model, record, side):
    """log p(answer | short prompt), the sum over the tokens of all turns; each turn is a sequence of its own."""
    total = 0.0
    for prompt, (start, end) in zip(record["short_prompts"], record[f"{side}_spans"], strict=True):
        total = total + _logprobs(model, prompt + record[side][start:end])[len(prompt) - 1 :].sum()
    return total


def longpo_step(
    model,
    records,
    beta,
    weight,
    *,
    shape="sigmoid",
    exchanged=0,
    mean=False,
    free=False,
    target=0,
    exponent=0,
    at=1,
    aligned=None,
    alignment=1.0,
):
    """Loss and metrics of one global batch (means over its records); gradients are left in `model`'s parameters.

    `shape` is sigmoid, ipo or hinge, `exchanged` the label smoothing, `target` the margin that rewards should have;
    `mean` takes log-probs per token, `free` no reference; beta is for `at` trunk tokens, and a power of them elsewhere.
    `aligned`, the sides of SoLoPO whose rewards on short prompts and on the document are pulled together, replaces the
    loss by the preference on short prompts and `alignment` times their distances.
    `records` are dicts of plain lists: trunk, chosen, rejected (token ids), chosen_spans, rejected_spans, ignore_spans,
    ref_chosen, ref_rejected (one list of log-probs per turn), short_prompts (token ids, one list per turn).
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
            read = [] if free else record[f"ref_{side}"]
            sums[f"ref_{side}"] = math.fsum(value for turn in read for value in turn)
            scored = sum(end - start for start, end in record[f"{side}_spans"]) if mean else 1
            sums[f"ratio_{side}"] = (policy - sums[f"ref_{side}"]) / scored
            if aligned:
                sums[f"short_{side}"] = (_short_sums(model, record, side) - sums[f"ref_{side}"]) / scored
            if side == "chosen":
                ignored = {p for start, end in record["ignore_spans"] for p in range(start, end)}
                kept = [p for p in range(1, len(ids)) if p not in ignored]
                nll = -sum(logprobs[p - 1] for p in kept) / len(kept)
        ratios = sums["ratio_chosen"], sums["ratio_rejected"]
        here = beta * (len(record["trunk"]) / at) ** exponent
        reward_chosen, reward_rejected = (here * ratio for ratio in ratios)
        margin = reward_chosen - reward_rejected
        short = {}
        if aligned:
            ratios = sums["short_chosen"], sums["short_rejected"]
            distance = sum(here * torch.abs(sums[f"ratio_{side}"] - sums[f"short_{side}"]) for side in aligned)
            difference = here * (ratios[0] - ratios[1])
            short = {
                "loss/alignment": distance,
                "rewards/short_chosen": here * ratios[0],
                "rewards/short_rejected": here * ratios[1],
                "rewards/short_margins": difference,
                "rewards/short_accuracies": 1.0 if difference > 0 else 0.0,
            }
        preference = _preference(ratios, here, shape, target, exchanged)
        loss = preference + alignment * distance if aligned else nll + weight * preference
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
            **short,
        }
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + torch.as_tensor(value).item() / len(records)
    return totals
