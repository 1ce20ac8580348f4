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


def _of_side(model, record, side, mean, free, aligned):
    """What one answer's tokens sum to: `policy`, `reference`, their `ratio`; and all `logprobs` of its sequence.

    With `aligned`, `short` is the ratio where the policy has read the short prompt.
    """
    trunk, spans = record["trunk"], record[f"{side}_spans"]
    logprobs = _logprobs(model, trunk + record[side])
    policy = sum(logprobs[len(trunk) + place - 1] for start, end in spans for place in range(start, end))
    reference = math.fsum(value for turn in ([] if free else record[f"ref_{side}"]) for value in turn)
    scored = sum(end - start for start, end in spans) if mean else 1
    found = {"logprobs": logprobs, "policy": policy, "reference": reference, "ratio": (policy - reference) / scored}
    return found | ({"short": (_short_sums(model, record, side) - reference) / scored} if aligned else {})


def _rewards(chosen, rejected, beta, name):
    rewards = {f"{name}chosen": beta * chosen, f"{name}rejected": beta * rejected}
    margin = beta * (chosen - rejected)
    return rewards | {f"{name}margins": margin, f"{name}accuracies": 1.0 if margin > 0 else 0.0}


def _nll(record, logprobs):
    """The mean over all tokens of the chosen sequence but the first and the ignored ones."""
    ignored = {place for start, end in record["ignore_spans"] for place in range(start, end)}
    kept = [place for place in range(1, len(logprobs) + 1) if place not in ignored]
    return -sum(logprobs[place - 1] for place in kept) / len(kept)


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
        chosen, rejected = (_of_side(model, record, side, mean, free, aligned) for side in ("chosen", "rejected"))
        nll = _nll(record, chosen["logprobs"])
        here = beta * (len(record["trunk"]) / at) ** exponent
        values = _rewards(chosen["ratio"], rejected["ratio"], here, "rewards/")
        if aligned:
            sides = {"chosen": chosen, "rejected": rejected}
            distance = sum(here * torch.abs(sides[name]["ratio"] - sides[name]["short"]) for name in aligned)
            values |= _rewards(chosen["short"], rejected["short"], here, "rewards/short_") | {
                "loss/alignment": distance
            }
        ratios = [side["short" if aligned else "ratio"] for side in (chosen, rejected)]
        preference = _preference(ratios, here, shape, target, exchanged)
        loss = preference + alignment * distance if aligned else nll + weight * preference
        (loss / len(records)).backward()
        values |= {
            "loss": loss,
            "loss/nll": nll,
            "loss/longpo": preference,
            "logps/chosen": chosen["policy"],
            "logps/rejected": rejected["policy"],
            "ref_logps/chosen": chosen["reference"],
            "ref_logps/rejected": rejected["reference"],
        }
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + torch.as_tensor(value).item() / len(records)
    return totals
