"""Train with LongPO from Python, without the `nemo` command.

    python examples/train.py --checkpoint start --shards work/shards --output run
    torchrun --nproc-per-node 8 examples/train.py --recipe mistral_7b_longpo_128k --checkpoint start …

The same command, given again, continues the run.
"""

import argparse
from pathlib import Path

import nemo_run as run

from nemo_longpo.nemo.recipes import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tiny_longpo", choices=RECIPES)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what `longpo convert import` wrote")
    parser.add_argument("--shards", type=Path, required=True, help="what `longpo data pack` wrote")
    parser.add_argument("--output", type=Path, required=True, help="the run's directory")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: %(default)s)")
    arguments = parser.parse_args()

    recipe = RECIPES[arguments.recipe]()
    recipe.data.paths = str(arguments.shards)
    recipe.resume.restore_config.path = str(arguments.checkpoint)
    recipe.log.log_dir = str(arguments.output)
    recipe.trainer.max_steps = arguments.steps
    # Every other value of the recipe can be set in the same way.
    recipe.model.objective.beta = 0.1
    recipe.log.ckpt.every_n_train_steps = 50

    run.run(recipe, direct=True)


if __name__ == "__main__":
    main()
