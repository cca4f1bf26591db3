"""Which setting was meant by an unknown name: a typo, another section, or another tool's name."""

import dataclasses
import difflib
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args, get_type_hints

from unet.config.parsing import fits
from unet.config.schema import Config

_LONGEST = 100  # longer names are no typos

# Names in Ultralytics, nnU-Net, segmentation_models, Lightning and Keras, without - and _.
_OTHER_NAMES = {
    "train.epochs": "nepochs numepochs maxepochs numtrainepochs epoch",
    "train.batch_size": "batch bs b nbatch minibatch minibatchsize trainbatchsize",
    "train.device": "gpu gpus cuda accelerator devices",
    "train.num_workers": "workers nworkers numthreads nproc dataloadernumworkers",
    "train.precision": "amp half fp16 mixedprecision dtype bf16",
    "train.init_from": "weights checkpoint pretrainedmodel resumefrom ckpt ckptpath",
    "train.encoder_weights": "pretrained imagenet",
    "train.accumulate": "accumulategradbatches gradaccum gradientaccumulation gradaccumsteps",
    "train.clip_grad_norm": "gradientclipval clip clipgrad gradclip clipnorm maxgradnorm",
    "train.ema_decay": "ema",
    "train.patience": "earlystopping earlystop",
    "train.validate_every": "valinterval checkvaleverynepoch evalevery valperiod",
    "train.steps_per_epoch": "limittrainbatches numiterationsperepoch stepsperepoch",
    "train.monitor": "metric metrics",
    "optimizer.lr": "learningrate lr0 baselr initiallr initlr maxlr",
    "optimizer.name": "optim optimizername opt",
    "optimizer.weight_decay": "wd l2 decay",
    "schedule.name": "scheduler lrscheduler lrschedule coslr lrpolicy",
    "schedule.warmup_epochs": "warmup warmupsteps",
    "model.widths": "features filters channels basechannels initfilters depth levels "
    "decoderchannels",
    "model.encoder": "backbone encodername arch architecture",
    "model.in_channels": "inchans nchannels numchannels inputchannels ch",
    "model.norm": "normalization norm batchnorm decoderusebatchnorm",
    "data.classes": "nc numclasses nclasses names labels outchannels",
    "data.root": "dataset datadir datapath dataroot datasetdir path folder inputdir",
    "data.images": "imagedir imgdir imagesdir source",
    "data.masks": "maskdir masksdir labeldir annotations gt",
    "data.ignore": "ignoreindex ignorelabel",
    "data.validation.fraction": "val valsplit validationsplit valfraction testsize valpercent",
    "data.validation.folds": "kfold nfolds numfolds nsplits",
    "data.cache_gib": "cache",
    "augment.crop": "imgsz imgsize imagesize inputsize patchsize cropsize tile targetsize",
    "augment.rotate": "degrees rotation rotationrange",
    "augment.flip_horizontal": "fliplr hflip horizontalflip flip",
    "augment.flip_vertical": "flipud vflip verticalflip",
    "loss.cross_entropy": "ce celoss crossentropyloss",
    "loss.class_weights": "weight classweight",
    "tiling.size": "tilesize windowsize roisize",
    "tiling.overlap": "tileoverlap stepsize",
    "runs": "project savedir outputdir outdir logdir defaultrootdir",
    "name": "runname experiment experimentname exp",
}


def suggest(path: str, value: Any = None, text: str | None = None) -> str:
    """Say which setting may be meant by an unknown path, such as `lr` or `train.lr`.

    With a value, and its text on the command line, the text is part of the suggestion if it fits.
    """
    types = _setting_types()
    section, _, leaf = path.rpartition(".")
    if path in types:  # as one key of a file
        return f"write {leaf} in the section {section}"
    if (setting := _find(path)) is None:
        inside = [one for one in types if one.rpartition(".")[0] == section]
        return f"known: {', '.join(one.rpartition('.')[2] for one in inside) or ', '.join(types)}"
    if setting == "train.device" and text is not None and (text == "gpu" or text.isdecimal()):
        value = text = "cuda" if text == "gpu" else f"cuda:{text}"  # as other tools name it
    if text is not None and isinstance(value, int) and not fits(types[setting], value):
        value, text = [value, value], f"[{text},{text}]"
    if text is not None and fits(types[setting], value):
        return f"did you mean {setting}={text}?"
    return f"did you mean {setting}?"


def _find(path: str) -> str | None:
    """Return the setting or section that is most likely meant."""
    types, (section, _, leaf) = _setting_types(), path.lower().replace("-", "_").rpartition(".")
    leaves = {one: one.rpartition(".")[2] for one in types}
    same = [one for one in types if leaves[one] == leaf]
    if same:  # of several, the one in the section with the most similar name, or in train
        return max(same, key=lambda one: _similarity(section or "train", one.rpartition(".")[0]))
    for setting, names in _OTHER_NAMES.items():
        if leaf.replace("_", "") in names.split():
            return setting
    if len(path) > _LONGEST:
        return None
    inside = {leaves[one]: one for one in types if one.rpartition(".")[0] == section}
    anywhere = {leaves[one]: one for one in reversed(types)}
    for candidates, cutoff in ((inside, 0.6), (anywhere, 0.75)):
        if near := difflib.get_close_matches(leaf, candidates, 1, cutoff):
            return candidates[near[0]]
    return None


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one[:_LONGEST], other).ratio()


@cache
def _setting_types() -> dict[str, Any]:
    """Return the types of all sections and settings by their dotted paths."""
    return dict(_list_settings(Config, ""))


def _list_settings(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(section, include_extras=True).items():
        yield prefix + name, hint
        for option in (hint, *get_args(hint)):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                yield from _list_settings(option, f"{prefix}{name}.")
