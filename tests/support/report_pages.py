"""Training runs for reports, and their pages taken apart."""

import html
import html.parser
import json
import re

from nemo_longpo.checkpoints import run_directory


def steps(count=6, **changes):
    """Metrics as training writes them; a change is a function of the step, or None to leave the metric out."""
    values = {
        "loss": lambda step: 2.5 / step,
        "loss/nll": lambda step: 2.25 / step,
        "loss/longpo": lambda step: 4.123456789 / step,
        "rewards/chosen": lambda step: -1 / step,
        "rewards/rejected": lambda step: -0.7 * step,
        "rewards/margins": lambda step: 0.7 * step - 1 / step,
        "rewards/accuracies": lambda step: min(1, step / 4),
        "lr": lambda step: 5e-7 * step / count,
        "grad_norm": lambda step: 13.607025146484375 / step,
        "tokens_per_second": lambda step: 90123.4 + step,
        "mfu": lambda step: 0.4 + 0.01 * step,
        "step_seconds": lambda step: 36.0,
        **changes,
    }
    return [
        {"step": step, **{name: value(step) for name, value in values.items() if value}} for step in range(1, count + 1)
    ]


def write_run(log_dir, lines, name="longpo", command="nemo llm finetune --factory longpo optim.config.lr=5e-7"):
    path = run_directory.metrics_file(log_dir, name)
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (log_dir / name).mkdir(exist_ok=True)
    (log_dir / name / "cmd-args.log").write_text(command, encoding="utf-8")
    return log_dir


def table_rows(page, title):
    part = page[page.index(f"<h3>{title}</h3>") :]
    body = part[: part.index("</table>")]
    return {
        re.search(r'<th scope="row">(.*?)</th>', row)[1]: {
            column: html.unescape(cell) for column, cell in re.findall(r'data-column="(.*?)">(.*?)</td>', row)
        }
        for row in re.findall(r"<tr class.*?</tr>", body, flags=re.S)
    }


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.links, self.open = "", [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "input"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "style") or name[:2] == "on"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
