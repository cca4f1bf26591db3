"""The command that finds masks that are probably wrong."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unet.cli.commands import is_checkpoint, load_config_file
from unet.config.data_schema import ValidationConfig
from unet.config.schema import Config
from unet.runtime.text import shorten

_FOLDS = 5  # of a config without folds


def run_review(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    """Rank the masks of a data set; train the folds of a config first."""
    from unet.evaluation.review import check_review, review

    runs = [Path(word) for word in arguments.paths]
    trained = all(map(is_checkpoint, arguments.paths))
    if trained:
        if arguments.minutes is not None or arguments.runs is not None:
            raise ValueError(
                "review: got runs with --minutes or --runs, which are for a config; leave them out"
            )
        run = runs[0].parent if runs[0].is_file() else runs[0]
        beside = (run if run.name else run.resolve()).with_name(run.name.partition("_fold")[0])
    elif len(runs) == 1:
        config = _load_with_folds(arguments, settings)
        beside, settings = Path(config.runs, config.name), ()
    else:
        raise ValueError(f"review: got {shorten(' '.join(arguments.paths))}, expected one config")
    out = arguments.out or beside.with_name(f"{beside.name}_review")
    check_review(out, arguments.overwrite)
    if not trained:
        runs = _train(config)
    result = review(runs, out, overrides=settings, overwrite=arguments.overwrite)
    print(f"\n{result}\n")
    print(f"wrote {out / 'review.html'}, and next to it review.csv and disputed/")
    if result.num_suspects:
        print(f"to train without the disputed regions: data.ignore_regions={out / 'disputed'}")


def _load_with_folds(arguments: argparse.Namespace, settings: Sequence[str]) -> Config:
    if arguments.minutes is not None:
        settings = [*settings, f"train.minutes={arguments.minutes}"]
    arguments.config = Path(arguments.paths[0])
    config = load_config_file(arguments, settings)
    if config.data.validation.folds is not None:
        return config
    print(f"note: data.validation has no folds; {_FOLDS} are trained")
    validation = ValidationConfig(folds=_FOLDS, group=config.data.validation.group)
    return replace(config, data=replace(config.data, validation=validation))


def _train(config: Config) -> list[Path]:
    """Train the folds, or the rest of them; return their runs."""
    from unet.training.series import configs_of_series, train_series

    train_series(config, all_folds=True, resume=True)
    return [Path(config.runs, one.name) for one in configs_of_series(config, all_folds=True)]
